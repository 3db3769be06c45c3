"""Stage 10: how open the release is, what was claimed and what was found, and hashes that bind a
report to what made it.
"""
