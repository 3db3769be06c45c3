"""How a notebook runs: stage records, the papermill runner, the report site. Knows nothing of any
model.
"""

from moxin_lab.lab.stage import Stage, stage

__all__ = ["Stage", "stage"]
