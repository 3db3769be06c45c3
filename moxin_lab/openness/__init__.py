"""Stage 10: how open the release is, the verdicts on all claims, and the manifest that binds a
report to the files that it rests on.
"""
