"""How a notebook runs: stage records and keys, the papermill runner, claims, the report site.

    stage = lab.stage("02_tokenizer", scale="tiny", seed=0)      # see stage.py
    lab.show_source(router.route)                                # see source.py

Guarantees: importing any module of this package imports no torch, lightning or transformers.
Out of scope: models, data and tokenizers; the stage packages import this one, never the reverse.
"""

from moxin_lab.lab.source import show_source, versions
from moxin_lab.lab.stage import Stage, stage

__all__ = ["Stage", "show_source", "stage", "versions"]
