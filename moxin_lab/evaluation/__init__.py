"""Evaluation: bits per byte, n-gram baselines, lm-evaluation-harness adapter and tasks, statistics,
published tables.
"""
