"""Stage 08, evaluation.

Bits per byte, n-gram baselines, an lm-evaluation-harness adapter with local tasks, statistics, and
the published tables.
"""
