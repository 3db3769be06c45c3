"""Checkpoint folders: ours load in transformers, transformers' load here, and errors about damaged
ones name file and tensor.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from moxin_lab.model.config import ConfigError, MoxinConfig
from moxin_lab.model.convert import CheckpointError, from_pretrained, save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM

CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    sliding_window=8,
    max_position_embeddings=128,
    initializer_range=0.2,
    pad_token_id=3,
    rope_theta=5000.0,
)


@pytest.fixture
def model() -> MoxinForCausalLM:
    return MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(5)).eval()


@pytest.fixture
def folder(model: MoxinForCausalLM, tmp_path: Path) -> Path:
    return save_pretrained(model, tmp_path / "checkpoint")


def ids() -> torch.Tensor:
    return torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shard_size", ["5GB", 20_000], ids=["one file", "shards"])
@torch.no_grad()
def test_a_saved_model_loads_bit_for_bit(
    model: MoxinForCausalLM, tmp_path: Path, shard_size: str | int
) -> None:
    folder = save_pretrained(model, tmp_path / "checkpoint", max_shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size != "5GB")
    loaded = from_pretrained(folder)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert torch.equal(loaded(ids()), model(ids()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("shard_size", ["5GB", 20_000], ids=["one file", "shards"])
@torch.no_grad()
def test_transformers_loads_a_saved_model(
    model: MoxinForCausalLM, tmp_path: Path, shard_size: str | int
) -> None:
    folder = save_pretrained(model, tmp_path / "checkpoint", max_shard_size=shard_size)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, MistralForCausalLM)
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), rtol=0, atol=1e-5)


def test_transformers_loads_a_saved_model_with_nothing_of_ours_imported(folder: Path) -> None:
    program = (
        "import sys; from transformers import AutoModelForCausalLM; "
        f"m = AutoModelForCausalLM.from_pretrained({str(folder)!r}); "
        "assert not [n for n in sys.modules if n.startswith('moxin_lab')]; "
        "print(type(m).__name__, m.config.sliding_window)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["MistralForCausalLM", "8"]


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@torch.no_grad()
def test_a_folder_that_transformers_saved_loads_here(tmp_path: Path, shard_size: str) -> None:
    torch.manual_seed(0)
    values = {**CONFIG.to_hf_dict(), "sliding_window": 8, "head_dim": None}
    theirs = MistralForCausalLM(MistralConfig(**values)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    ours = from_pretrained(tmp_path)
    assert ours.config.rope_theta == 5000.0
    assert ours.config.head_dim == 8  # null means hidden_size / heads
    torch.testing.assert_close(ours(ids()), theirs(ids()).logits, rtol=0, atol=1e-5)


def test_saving_is_deterministic(model: MoxinForCausalLM, folder: Path, tmp_path: Path) -> None:
    again = save_pretrained(model, tmp_path / "again")
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_dtype_can_be_chosen_and_is_written(model: MoxinForCausalLM, tmp_path: Path) -> None:
    folder = save_pretrained(model.to(torch.bfloat16), tmp_path)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert from_pretrained(folder).lm_head.weight.dtype == torch.bfloat16
    assert from_pretrained(folder, dtype=torch.float32).lm_head.weight.dtype == torch.float32


def test_missing_surplus_and_misshapen_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    for changes, message in (
        ({"lm_head.weight": None}, "1 missing.*lm_head.weight"),
        ({"model.extra": torch.zeros(2)}, "1 unknown.*model.extra"),
        (
            {"model.norm.weight": torch.zeros(5)},
            r"model.norm.weight has shape \(5,\), config.json requires \(32,\)",
        ),
    ):
        changed = {
            name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None
        }
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            from_pretrained(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model.safetensors"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config.json is not JSON"):
        from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "num_attention_heads 32 is not a multiple of num_key_value_heads 3",
        ),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0"),
        ({"eos_token_id": 32_000}, "eos_token_id is 32000"),
    ],
)
def test_a_wrong_configuration_is_refused_by_field(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        MoxinConfig(**changes)


def test_a_configuration_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        MoxinConfig.from_hf_dict({**CONFIG.to_hf_dict(), "model_type": "llama"})
    with pytest.raises(ConfigError, match="lacks vocab_size, num_hidden_layers"):
        MoxinConfig.from_hf_dict(
            {**CONFIG.to_hf_dict(), "vocab_size": None, "num_hidden_layers": None}
        )
    scaled = {
        **CONFIG.to_hf_dict(),
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
    }
    with pytest.raises(ConfigError, match="rotary embedding of type 'yarn'"):
        MoxinConfig.from_hf_dict(scaled)


def test_the_released_config_json_is_read_as_moxin_7b() -> None:
    """The keys of the released file: transformers 4.34, `rope_theta` at the top, no `head_dim`."""
    released = {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.34.0",
        "use_cache": True,
        "vocab_size": 32000,
    }
    assert MoxinConfig.from_hf_dict(released) == MoxinConfig()
