"""What the towers and the trainings of stage 07 are told. Defaults are the full scale's: Prismatic's and Moxin-VLM's values.

Any object with the same attributes serves (the scale file's sections do). Sources: `conf/models.py` of prismatic-vlms for the
recipe, `prism-moxin-dinosiglip-224px+7b` of Moxin-VLM for 224 pixels, naive resize and two epochs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOWERS = ("dino", "siglip")
RESIZES = ("naive", "letterbox", "crop")
STAGES = ("align", "finetune", "full-finetune")
BACKBONES = {"base": "04_pretraining", "instruct": "05_instruction_tuning", "reasoning": "06_reasoning"}
"""Which stage's checkpoint the language model is. The report says Base, the released code loads Instruct: both can be run."""


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Two vision transformers by timm's names. `*_shape` are further arguments of `timm.create_model`: a narrow tower of the same
    class has e.g. `{"embed_dim": 96, "depth": 6, "num_heads": 4, "patch_size": 16}`."""

    image_size: int = 224
    dino: str = "vit_large_patch14_reg4_dinov2.lvd142m"
    siglip: str = "vit_so400m_patch14_siglip_224"
    dino_shape: Mapping[str, Any] = field(default_factory=dict)
    siglip_shape: Mapping[str, Any] = field(default_factory=dict)
    resize: str = "naive"
    which: tuple[str, ...] = TOWERS
    """Both, fused by channel, or one alone."""

    def __post_init__(self) -> None:
        if not self.which or not set(self.which) <= set(TOWERS):
            raise ValueError(f"which is {self.which!r}: at least one of {', '.join(TOWERS)}")
        if self.resize not in RESIZES:
            raise ValueError(f"resize is {self.resize!r}: available are {', '.join(RESIZES)}")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What every training here has: AdamW, warm-up and cosine to 0, clipping, steps of `examples_per_step`."""

    epochs: int = 1
    examples_per_step: int = 128
    micro_batch_examples: int = 16
    learning_rate: float = 2e-5
    warmup_ratio: float = 0.03
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip_norm: float | None = 1.0
    precision: str = "32-true"
    checkpoint_every_steps: int = 1000


@dataclass(frozen=True, kw_only=True)
class VlmSettings(Optimisation):
    """One stage of the VLM. Prismatic: align 1e-3, no decay, 256 examples, 1 epoch; finetune as the defaults, Moxin 2 epochs."""

    max_tokens: int = 2048
    """Text tokens of an example, bos included; patches come on top."""
    activation_checkpointing: str = "none"


@dataclass(frozen=True, kw_only=True)
class SiglipSettings(Optimisation):
    """Contrastive training. The loss compares all pairs of a step, so a step is never cut: micro_batch_examples is ignored."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    examples_per_step: int = 256
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 4
    text_tokens: int = 24


@dataclass(frozen=True, kw_only=True)
class DinoSettings(Optimisation):
    """Self-distillation (Caron et al. 2021, arXiv 2104.14294) with two views an image."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.04
    examples_per_step: int = 128
    prototypes: int = 512
    teacher_momentum: float = 0.99
    center_momentum: float = 0.9
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
