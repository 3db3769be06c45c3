"""Stage 07: vision towers, the vision-language model, its data and its tasks."""
