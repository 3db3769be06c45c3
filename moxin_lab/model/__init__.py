"""Stage 03: the 36-block decoder, its attention, its rolling-buffer cache, generation and
conversion.
"""
