"""Triton kernels: windowed attention forward and backward, and the decoding step over a ring.
Nothing here imports a model.
"""
