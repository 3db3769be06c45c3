"""A narrow model of all parts, a byte tokenizer and small trainings, for the tests of stage 07."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.scales.sections import DinoTrainingSettings, TowerSettings
from moxin_lab.vision.towers import build_towers
from moxin_lab.vision.vlm import MoxinVLM

SHAPE = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 16}
TINY_TOWERS = TowerSettings(
    image_size=32, dino_shape={**SHAPE, "init_values": 0.1}, siglip_shape={**SHAPE, "embed_dim": 32}
)

OPTIMISATION = {
    "epochs": 1,
    "examples_per_step": 128,
    "micro_batch_examples": 16,
    "learning_rate": 2e-5,
    "warmup_ratio": 0.03,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1e-8,
    "weight_decay": 0.1,
    "gradient_clip_norm": 1.0,
    "precision": "32-true",
    "checkpoint_every_steps": 1000,
}
"""Settings that all trainings share; a test overrides those that matter to it."""

DINO_STEPS = {
    "epochs": 3,
    "examples_per_step": 8,
    "micro_batch_examples": 8,
    "checkpoint_every_steps": 2,
}
DINO = DinoTrainingSettings(
    **{**OPTIMISATION, **DINO_STEPS, "learning_rate": 1e-3, "weight_decay": 0.04},
    prototypes=16,
    teacher_momentum=0.99,
    center_momentum=0.9,
    student_temperature=0.1,
    teacher_temperature=0.04,
    view_strength=1.0,
)
CPU = {"accelerator": "cpu"}
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "black": (10, 10, 10),
}


def colour_squares(count=4):
    """Transparent drawings [count, 32, 32, 4] with a square of one of four colours in turn."""
    pictures = np.zeros((count, 32, 32, 4), dtype=np.uint8)
    for picture, colour in zip(pictures, list(COLOURS.values()) * count, strict=False):
        picture[6:26, 6:26] = (*colour, 255)
    return pictures


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token per byte, so that every word of more than one letter has several; `<unk> <s> </s>
    <pad>` are 0 to 3.
    """
    names = ["<unk>", "<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.fixture
def tiny_vlm():
    """Towers for 32 pixels (4 patches) and a decoder of 3 blocks, with weights large enough that
    every part changes the logits.
    """
    config = MoxinConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=24,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    decoder = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(1))
    return MoxinVLM(decoder, build_towers(TINY_TOWERS, seed=1), seed=1).eval()


@pytest.fixture
def pixels():
    """Normalised pixels of three images, by tower."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 3, 32, 32, generator=generator) for name in ("dino", "siglip")}
