"""Stage 04: three-phase pretraining: packing, the training itself, its tables and figures."""
