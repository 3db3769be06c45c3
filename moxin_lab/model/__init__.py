"""Stage 03, the model: the 36-block decoder, attention, rolling cache, generation, conversion."""
