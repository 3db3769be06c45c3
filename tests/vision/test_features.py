"""`moxin_lab.vision.features`: the channels of one tower are a slice of those of both."""

import pytest
import torch

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision import data, towers
from moxin_lab.vision.features import compute_features, select_towers

SHAPE = {"patch_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def small_towers():
    settings = TowerSettings(
        image_size=32,
        dino="vit_small_patch14_reg4_dinov2",
        siglip="vit_base_patch16_siglip_224",
        dino_shape=SHAPE,
        siglip_shape={**SHAPE, "embed_dim": 32},
    )
    return towers.build_towers(settings)


def test_one_tower_alone_sees_its_own_channels(small_towers, repository):
    concepts = data.read_concepts(repository / "data_cards" / "emoji", "test")
    pictures = {one.id: data.render(one.drawings["google"], 32) for one in concepts[:3]}
    seen = compute_features(small_towers, pictures, device="cpu")
    for name in ("dino", "siglip"):
        alone, sliced = select_towers(small_towers, (name,), seen)
        again = compute_features(alone, pictures, device="cpu")
        for key in pictures:
            assert torch.allclose(sliced[key], again[key], atol=1e-5)
    assert select_towers(small_towers, ("dino", "siglip"), seen)[1] is seen
