"""Stage 02: the routed tokenizer. Import the modules by name; this file stays empty of code."""
