"""Checkpoint folders: ours load in transformers, transformers' load here, and errors about damaged
ones name file and tensor.
"""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from moxin_lab.model import hf_config
from moxin_lab.model.config import ConfigError, MoxinConfig, count_parameters
from moxin_lab.model.convert import CheckpointError, from_pretrained, save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.expansion import expand

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
    with pytest.raises(ConfigError, match=r"config.json cannot be read as JSON"):
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
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None: it must be true or false"),
        ({"attention_dropout": None}, "attention_dropout is None"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 10+: it must be a number"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"intermediate_size": 10**12}, "a model of more than 1.1e.15 parameters"),
        ({"vocab_size": 10**400}, "a model of more than 1.1e.15 parameters"),
        ({"bos_token_id": True}, "bos_token_id is True"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"eos_token_id": ()}, r"eos_token_id is \(\)"),
        ({"eos_token_id": (2, 32_000)}, r"eos_token_id is \(2, 32000\): it must be in the voc"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0"),
        ({"eos_token_id": 32_000}, "eos_token_id is 32000"),
    ],
)
def test_a_wrong_configuration_is_refused_by_field(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        MoxinConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma': mistral and llama checkpoints are read"),
        ({"model_type": ["mistral"]}, r"model_type is \['mistral'\]"),
        ({"architectures": ["MistralForSequenceClassification"]}, "architectures is"),
        ({"vocab_size": None, "num_hidden_layers": None}, "lacks vocab_size, num_hidden_layers"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rotary embedding of type 'yarn'",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None},
            "rotary embedding of type 'linear'",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "beside its type only rope_theta is implemented",
        ),
        ({"rope_parameters": [1]}, "rope_parameters is .1.: it must be an object or null"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"attention_bias": True}, "attention_bias is True: this decoder implements False only"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"auto_map": {"AutoModelForCausalLM": "other.Other"}}, "auto_map is"),
        ({"final_logit_softcapping": 30.0}, "unknown keys final_logit_softcapping"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads is 0"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types is .* every one of the 3 blocks"),
        ({"model_type": "llama"}, "sliding_window is set: a LLaMA has no window"),
        ({"eos_token_id": [2, 99]}, r"eos_token_id is \(2, 99\)"),
    ],
)
def test_what_a_configuration_says_is_understood_or_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    assert CONFIG.save(tmp_path) == tmp_path / "config.json"
    assert hf_config.read(tmp_path) == CONFIG
    values = {**json.loads((tmp_path / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        hf_config.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", ": it is a list, not an object"),
        (b"null", ": it is a NoneType"),
        (b"", " cannot be read as JSON: Expecting value"),
        (b"\xff{}", " cannot be read as JSON: it is not UTF-8"),
        (b"[" * 100_000, " cannot be read as JSON: it is nested too deeply"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", " .*nested too deeply"),
        (b"9" * 5000, " cannot be read as JSON: Exceeds the limit"),
        (b'{"a": 1, "a": 2}', " .*the key 'a' is given twice"),
        (b" " * (2**20 + 1), " .*it is larger than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"config.json{message}"):
        hf_config.read(tmp_path)


def test_several_end_tokens_and_a_null_dropout_are_read(tmp_path: Path) -> None:
    values = {**CONFIG.to_hf_dict(), "eos_token_id": [2, 3], "attention_dropout": None}
    config = hf_config.from_dict(values)
    assert config == dataclasses.replace(CONFIG, eos_token_id=(2, 3))
    config.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [2, 3]
    assert hf_config.read(tmp_path) == config


@pytest.mark.parametrize("theirs", [MistralConfig, LlamaConfig])
def test_an_absent_key_means_what_it_means_in_transformers(theirs: type) -> None:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
    }
    ours = hf_config.from_dict({"model_type": theirs.model_type, **sizes})
    their = theirs(**sizes)
    for name in MoxinConfig.__dataclass_fields__:
        if name not in ("rope_theta", "sliding_window", "mlp_dropout"):
            assert getattr(ours, name) == getattr(their, name), name
    assert ours.rope_theta == their.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(their, "sliding_window", None)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 77.0}},
        {
            "rope_scaling": {"type": "default"},
            "rope_parameters": {"rope_theta": 77.0},
            "rope_theta": 55.0,
        },
        {"rope_scaling": {"type": "default", "rope_theta": 33.0}, "rope_theta": 55.0},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 77.0}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}, "rope_theta": 55.0},
        {"rope_theta": 55.0},
    ],
)
def test_the_first_filled_object_decides_the_rotary_base_as_in_transformers(rope: dict) -> None:
    values = {name: v for name, v in CONFIG.to_hf_dict().items() if not name.startswith("rope")}
    theirs = MistralConfig(**values, **copy.deepcopy(rope))
    ours = hf_config.from_dict({**values, **rope})
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_a_file_that_transformers_writes_is_read_as_it_is() -> None:
    theirs = MistralConfig(**CONFIG.to_hf_dict())
    assert hf_config.from_dict(json.loads(theirs.to_json_string(use_diff=False))) == CONFIG


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
    assert hf_config.from_dict(released) == MoxinConfig()


def llama(**changes: object) -> LlamaForCausalLM:
    values = {
        **{name: value for name, value in CONFIG.to_hf_dict().items() if name != "architectures"},
        "model_type": "llama",
        "sliding_window": None,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        **changes,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_llama_loads_with_transformers_logits_and_is_saved_as_a_mistral_without_a_window(
    tmp_path: Path, tied: bool
) -> None:
    theirs = llama(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path / "llama")
    ours = from_pretrained(tmp_path / "llama")
    assert ours.config.sliding_window is None and ours.config.tie_word_embeddings is tied
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) is tied
    torch.testing.assert_close(ours(ids()), theirs(ids()).logits, rtol=0, atol=1e-5)
    folder = save_pretrained(ours, tmp_path / "saved")
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(again, MistralForCausalLM)
    torch.testing.assert_close(again(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-5)
    assert torch.equal(from_pretrained(folder)(ids()), ours(ids()))
    assert sum(p.numel() for p in ours.parameters()) == count_parameters(ours.config)["total"]


@torch.no_grad()
def test_a_tied_model_is_expanded_with_equal_logits_and_stays_tied(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    deeper = expand(ours, 5, "identity")
    assert deeper.lm_head.weight is deeper.model.embed_tokens.weight
    assert torch.equal(deeper(ids()), ours(ids()))


def test_a_tied_head_gets_the_gradient_of_both_uses(tmp_path: Path) -> None:
    theirs = llama(pad_token_id=None)  # theirs has no gradient for looking up a padding token
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for logits in (ours(ids()), theirs(ids()).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids().flatten()).backward()
    torch.testing.assert_close(
        ours.model.embed_tokens.weight.grad,
        theirs.model.embed_tokens.weight.grad,
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_stored_head_that_is_not_the_tied_embedding_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert from_pretrained(tmp_path).config.tie_word_embeddings
    save_file({**weights, "lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens"):
        from_pretrained(tmp_path)


def test_a_head_that_is_missing_gets_a_hint_at_tying(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Then set tie_word_embeddings in config.json"):
        from_pretrained(folder)


def test_frequencies_that_old_checkpoints_hold_are_skipped(
    model: MoxinForCausalLM, folder: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    assert torch.equal(from_pretrained(folder)(ids()), model(ids()))


@torch.no_grad()
def test_a_single_file_comes_before_an_index_as_in_transformers(
    model: MoxinForCausalLM, folder: Path, tmp_path: Path
) -> None:
    other = MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(6))
    for path in save_pretrained(other, tmp_path / "shards", max_shard_size=20_000).iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder / path.name)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(theirs(ids()).logits, model(ids()), rtol=0, atol=1e-5)
    assert torch.equal(from_pretrained(folder)(ids()), model(ids()))


@pytest.mark.parametrize("sizes", [("5GB", 20_000), (20_000, "5GB"), (20_000, 60_000)])
@torch.no_grad()
def test_a_second_save_leaves_nothing_of_the_first(
    model: MoxinForCausalLM, tmp_path: Path, sizes: tuple[str | int, str | int]
) -> None:
    other = MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(6)).eval()
    save_pretrained(other, tmp_path, max_shard_size=sizes[0])
    save_pretrained(model, tmp_path, max_shard_size=sizes[1])
    assert torch.equal(from_pretrained(tmp_path)(ids()), model(ids()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>404</title>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"PK\x03\x04archive/data.pkl", "a pickled checkpoint"),
        (b"", "it has 0 bytes: it may be cut, fetch it again"),
        (None, "it may be cut, fetch it again"),
    ],
)
def test_a_weight_file_of_another_kind_or_a_cut_one_is_named(
    folder: Path, content: bytes | None, message: str
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match=f"model.safetensors is not a safeten.*{message}"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map from tensors to files"),
        ([], "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "which is not a file of this folder"),
        ({"weight_map": {"a": 3}}, "a is in '3', which is not a file"),
        ({"weight_map": {"a": "one.safetensors"}}, "lacks one.safetensors, which its index names"),
        ({"weight_map": {"a": "shard.safetensors"}}, "shard.safetensors lacks a, which the index"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(folder: Path, index: object, message: str) -> None:
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(folder)


def test_a_tensor_in_two_shards_is_refused(model: MoxinForCausalLM, tmp_path: Path) -> None:
    folder = save_pretrained(model, tmp_path, max_shard_size=20_000)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    save_file({**load_file(first), **load_file(second)}, first)
    with pytest.raises(CheckpointError, match=r"is in .*model-00001.* and in .*model-00002"):
        from_pretrained(folder)


def test_another_number_of_blocks_and_quantised_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for blocks in (2, 10**9):
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": blocks}))
        with pytest.raises(CheckpointError, match=f"3 blocks, num_hidden_layers .* is {blocks}"):
            from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.norm.weight is I8.* quantised"):
        from_pretrained(folder)


def test_matrices_of_several_dtypes_need_the_dtype_to_load_them_in(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].double()  # no matrix
    save_file(weights, folder / "model.safetensors")
    from_pretrained(folder)
    odd = "model.layers.1.mlp.up_proj.weight"
    weights[odd] = weights[odd].to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors")
    message = rf"several dtypes: .*weight is F32, {odd} is BF16|{odd} is BF16, .*weight is F32"
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(folder)
    loaded = from_pretrained(folder, dtype=torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
