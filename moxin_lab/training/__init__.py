"""Stage 04: three-phase pretraining with Lightning."""
