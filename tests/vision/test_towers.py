"""`moxin_lab.vision.towers`: models of timm and open_clip, with the features of Prismatic."""

import json

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.scales import load
from moxin_lab.scales.sections import TowerSettings, VisionSettings
from moxin_lab.vision.towers import TowerError, Towers, build_towers, load_towers, save_towers
from moxin_lab.vision.vlm import MoxinVLM
from tests.vision.conftest import SHAPE, TINY_TOWERS


def test_features_are_timms_second_to_last_block_without_norm_and_prefix(pixels):
    towers = build_towers(TINY_TOWERS)
    with torch.no_grad():
        ours = towers.features(pixels)
        theirs = [
            tower.get_intermediate_layers(pixels[name], n={len(tower.blocks) - 2})[0]
            for name, tower in (("dino", towers.dino), ("siglip", towers.siglip))
        ]
        normed = towers.dino.get_intermediate_layers(pixels["dino"], n={1}, norm=True)[0]
    assert ours.shape == (3, 4, 56) and towers.channels == 56 and towers.num_patches == 4
    torch.testing.assert_close(ours, torch.cat(theirs, dim=2), rtol=0, atol=0)
    assert not torch.allclose(ours[..., :24], normed, atol=1e-3)  # or the test could not fail


def test_swapped_pixels_give_other_features(pixels):
    towers = build_towers(TINY_TOWERS)
    with torch.no_grad():
        right = towers.features(pixels)
        swapped = towers.features({"dino": pixels["siglip"], "siglip": pixels["dino"]})
    assert (right - swapped).abs().max() > 0.01
    with pytest.raises(ValueError, match="lacks siglip"):
        towers.features({"dino": pixels["dino"]})


def test_one_tower_alone_works_and_towers_that_do_not_fit_are_refused(pixels):
    alone = build_towers(TINY_TOWERS.model_copy(update={"which": ("siglip",)}))
    assert alone.channels == 32 and alone.features(pixels).shape == (3, 4, 32)
    with pytest.raises(ValueError, match="different numbers of patches"):
        build_towers(TINY_TOWERS.model_copy(update={"dino_shape": {**SHAPE, "patch_size": 8}}))
    with pytest.raises(ValueError, match="Input should be 'naive', 'letterbox' or 'crop'"):
        TowerSettings(resize="stretch")


def test_saved_towers_load_with_the_same_features(pixels, tmp_path):
    towers = build_towers(TINY_TOWERS, seed=3)
    again = load_towers(save_towers(towers, tmp_path / "towers"))
    with torch.no_grad():
        torch.testing.assert_close(again.features(pixels), towers.features(pixels), rtol=0, atol=0)


def test_a_timm_checkpoint_on_disk_loads_by_name_with_resampled_positions(tmp_path):
    big = timm.create_model(
        "vit_large_patch14_reg4_dinov2.lvd142m", img_size=48, num_classes=0, **SHAPE
    )
    torch.save(big.state_dict(), tmp_path / "dino.pth")
    towers = build_towers(
        TINY_TOWERS.model_copy(update={"dino_shape": SHAPE}),
        checkpoints={"dino": tmp_path / "dino.pth"},
    )
    torch.testing.assert_close(
        towers.dino.blocks[1].mlp.fc1.weight, big.blocks[1].mlp.fc1.weight, rtol=0, atol=0
    )
    assert big.pos_embed.shape[1] == 9 and towers.dino.pos_embed.shape[1] == 4
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_towers(TINY_TOWERS, checkpoints={"dino": tmp_path / "nowhere.pth"})


def test_an_open_clip_checkpoint_on_disk_loads_by_open_clips_name(tmp_path):
    config = {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1},
    }
    (tmp_path / "moxin-test-siglip.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "moxin-test-siglip.json")
    whole = open_clip.create_model("moxin-test-siglip")
    torch.save(whole.state_dict(), tmp_path / "siglip.pt")
    settings = TowerSettings(image_size=160, siglip="moxin-test-siglip", which=("siglip",))
    towers = build_towers(settings, seed=9, checkpoints={"siglip": tmp_path / "siglip.pt"})
    pictures = torch.randn(2, 3, 160, 160)
    trunk = whole.eval().visual.trunk
    with torch.no_grad():
        expected = trunk.get_intermediate_layers(pictures, n={len(trunk.blocks) - 2})[0]
        torch.testing.assert_close(towers.features({"siglip": pictures}), expected)


def test_the_full_scale_model_has_the_published_shapes_and_counts():
    settings = TowerSettings()
    with torch.device("meta"):
        models = {
            name: timm.create_model(getattr(settings, name), img_size=224, num_classes=0)
            for name in settings.which
        }
        model = MoxinVLM(MoxinForCausalLM(MoxinConfig()), Towers(settings, models))
    assert (model.towers.channels, model.towers.num_patches) == (2176, 256)
    assert [len(tower.blocks) for tower in (model.towers.dino, model.towers.siglip)] == [24, 27]
    linears = [(linear.in_features, linear.out_features) for linear in model.projector.children()]
    assert linears == [(2176, 8704), (8704, 4096), (4096, 4096)]
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    assert (
        counts["projector"]
        == 2176 * 8704 + 8704 + 8704 * 4096 + 4096 + 4096 * 4096 + 4096
        == 71_385_600
    )
    assert counts["decoder"] == 8_114_180_096

    def block(w, inner, scales):
        return 4 * (w * w + w) + 2 * w * inner + inner + w + 2 * 2 * w + scales * w

    patch = 14 * 14 * 3 + 1
    dino = (
        24 * block(1024, 4096, 2) + (patch + 1 + 4 + 256 + 2) * 1024
    )  # class token, 4 registers, positions, last norm
    pool = (
        4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 3 * 1152
    )  # SigLIP's attention pool: probe, norm
    siglip = 27 * block(1152, 4304, 0) + (patch + 256 + 2) * 1152 + pool
    assert counts["towers"] == dino + siglip == 730_911_680


def test_saved_settings_keep_their_format_and_older_folders_load(tmp_path):
    folder = save_towers(build_towers(TINY_TOWERS), tmp_path / "towers")
    values = json.loads((folder / "towers.json").read_text(encoding="utf-8"))
    shape = {**SHAPE, "init_values": 0.1}
    assert values == {
        "dino": "vit_large_patch14_reg4_dinov2.lvd142m",
        "dino_shape": shape,
        "image_size": 32,
        "resize": "naive",
        "siglip": "vit_so400m_patch14_siglip_224",
        "siglip_shape": {**SHAPE, "embed_dim": 32},
        "which": ["dino", "siglip"],
    }
    assert TowerSettings.model_validate(values) == TINY_TOWERS


def test_a_scale_states_every_setting_of_the_towers():
    values = load("tiny").vision.model_dump()
    del values["towers"]["resize"]
    with pytest.raises(ValueError, match="towers lacks resize"):
        VisionSettings.model_validate(values)


def _safetensors(tower):
    return {name: value.contiguous() for name, value in tower.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("page.safetensors", b"<html>404 Not Found</html>"),
        ("cut.safetensors", None),
        ("empty.pth", b""),
        ("page.pth", b"<html>404 Not Found</html>"),
        ("junk.bin", b"junk"),
        ("list.pth", [1, 2]),
        ("other.safetensors", {"a": torch.zeros(1)}),
        ("siglip.safetensors", "siglip"),
    ],
)
def test_a_broken_checkpoint_is_refused_with_its_file_and_tower(tmp_path, name, content):
    file, towers = tmp_path / name, build_towers(TINY_TOWERS)
    if content is None:
        save_file(_safetensors(towers.dino), file)
        file.write_bytes(file.read_bytes()[:-100])
    elif content == "siglip":
        save_file(_safetensors(towers.siglip), file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        save_file(content, file)
    else:
        torch.save(content, file)
    with pytest.raises(TowerError, match=rf"{name} is no checkpoint of the tower dino"):
        build_towers(TINY_TOWERS, checkpoints={"dino": file})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("towers.json", b""),
        ("towers.json", b"[]"),
        ("towers.json", b'{"image_size": "x"}'),
        ("towers.json", b'{"image_size": 32, "image_size": 48}'),
        ("towers.safetensors", b""),
        ("towers.safetensors", b"<html>"),
    ],
)
def test_a_broken_folder_of_towers_is_refused_with_its_file(tmp_path, file, content):
    folder = save_towers(build_towers(TINY_TOWERS), tmp_path)
    (folder / file).write_bytes(content)
    with pytest.raises(TowerError, match=file):
        load_towers(folder)
