"""Stage 02: the routed tokenizer.

Import the modules by name; this file holds no code.
"""
