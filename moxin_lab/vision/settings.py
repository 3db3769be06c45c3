"""What the towers are told, as a checkpoint keeps it. Defaults are the full scale's: Prismatic's
and Moxin-VLM's values.

Any object with the same attributes serves (the scale file's section does); what the trainings are
told is in the scale files alone. Sources: `conf/models.py` of prismatic-vlms,
`prism-moxin-dinosiglip-224px+7b` of Moxin-VLM for 224 pixels, naive resize.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOWERS = ("dino", "siglip")
RESIZES = ("naive", "letterbox", "crop")
STAGES = ("align", "finetune", "full-finetune")


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Two vision transformers by timm's names. `*_shape` are further arguments of
    `timm.create_model`: a narrow tower of the same class has e.g. `{"embed_dim": 96, "depth": 6,
    "num_heads": 4, "patch_size": 16}`.
    """

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
