"""The three scales: one YAML file each, one section a stage, checked here before any work starts.

Only sizes differ between scales; depth, stage order, losses and the shapes of schedules are the
recipe and stay. In `full.yaml` each value carries its source, or the words `our choice`. This
module describes the sections and loads a file; it imports nothing heavy and knows nothing of any
model.

    scale = load("tiny")
    scale.pretraining.phases[0].sequence_length
"""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from moxin_lab.scales.sections import (
    DataSettings,
    EvaluationSettings,
    InstructionTuningSettings,
    ModelSettings,
    PretrainingSettings,
    ReasoningSettings,
    Section,
    TokenizerSettings,
    VisionSettings,
)

SCALES = ("tiny", "small", "full")


class ScaleError(ValueError):
    """A scale that does not exist, or a scale file with a wrong value; the message names the file
    and the field.
    """


class Scale(Section):
    """A whole scale file."""

    name: Literal["tiny", "small", "full"]
    data: DataSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    pretraining: PretrainingSettings
    instruction_tuning: InstructionTuningSettings
    reasoning: ReasoningSettings
    vision: VisionSettings
    evaluation: EvaluationSettings


def load(name: str) -> Scale:
    """Read and check `moxin_lab/scales/<name>.yaml`. Raises ScaleError for an unknown name or a
    wrong value.
    """
    if name not in SCALES:
        raise ScaleError(f"unknown scale {name!r}: choose one of {', '.join(SCALES)}")
    path = Path(__file__).parent / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Scale.model_validate({"name": name, **values})
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise ScaleError(f"{path}: {error}") from error
