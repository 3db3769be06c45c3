"""How a notebook runs: stage records and keys, the papermill runner, claims, the report site.

    stage = lab.stage("02_tokenizer", scale="tiny", seed=0)      # see stage.py

Guarantees: importing any module of this package imports no torch, lightning or transformers.
Out of scope: models, data and tokenizers; the stage packages import this one, never the reverse.
"""

from moxin_lab.lab.stage import Stage, stage

__all__ = ["Stage", "stage"]
