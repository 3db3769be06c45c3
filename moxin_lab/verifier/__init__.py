"""Is this answer the gold answer? Answers read, screened and compared in killable workers; imports
nothing of ours.
"""
