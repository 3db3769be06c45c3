"""Moxin Lab: the evidence behind Moxin-7B, one package per stage of the recipe.

Importing this package imports nothing heavy; notebooks import the modules that they use
(`from moxin_lab import lab`, `from moxin_lab.tokenizer import routed`).
"""

from moxin_lab import threads

__version__ = "0.1.0"

threads.configure()  # before anything imports torch, which reads it once
