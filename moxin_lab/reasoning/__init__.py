"""Stage 06: task families, chains of thought, GRPO with verified rewards, and what went wrong when
it fails.
"""
