"""`moxin_lab.vision.features`: the channels of one tower are a slice of those of both."""

import pytest
import torch

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision import data, towers
from moxin_lab.vision.features import (
    compute_features,
    pooled_by_style,
    prepare_styles,
    select_towers,
    similarity_to_middle,
)

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


def test_pooled_vectors_and_maps_have_one_entry_per_drawing_of_each_style(small_towers, repository):
    concepts = data.read_concepts(repository / "data_cards" / "emoji", "test")[:3]
    views = prepare_styles(concepts, small_towers)
    pooled = pooled_by_style(small_towers, views)
    assert list(views) == ["google", "twitter"] and list(pooled) == ["dino", "siglip"]
    again = towers.pooled_features(small_towers.tower("siglip"), views["twitter"]["siglip"])
    assert (pooled["siglip"]["twitter"] == again).all() and len(again) == 3
    maps = similarity_to_middle(small_towers, views["google"])
    assert maps["dino"].shape == (3, 2, 2)
    assert maps["dino"][:, 1, 1] == pytest.approx(1, abs=1e-5)  # the middle is similar to itself
    assert (maps["dino"][:, 0, 0] < 0.999).all()
