"""GPU kernels in Triton and Gluon: windowed attention, decoding over a ring, cross-entropy, AdamW.

Guarantees: no module here imports a model; each kernel has a test against plain PyTorch operations.
Out of scope: choosing a backend (moxin_lab/model/attention.py does).
"""
