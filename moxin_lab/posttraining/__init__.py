"""Conversations to an instruct model: chat template, supervised fine-tuning, preference optimisation."""
