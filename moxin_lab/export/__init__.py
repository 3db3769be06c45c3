"""Models for other programs: a Hugging Face folder, a GGUF file, quantised weights (`moxin-lab
export`; docs/exporting.md).
"""

TARGETS = ("hf", "gguf", "torchao-int8", "torchao-int4")
