"""Stage 05: chat template, supervised fine-tuning and preference optimisation."""
