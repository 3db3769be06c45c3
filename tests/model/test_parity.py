"""Our decoder and transformers' MistralForCausalLM compute the same function of the weights."""

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from moxin_lab.model.config import MoxinConfig, count_parameters
from moxin_lab.model.decoder import MoxinForCausalLM

SHAPES = {
    "grouped heads": {
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 6,
    },
    "one key/value head": {
        "hidden_size": 32,
        "intermediate_size": 112,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "no grouping": {
        "hidden_size": 40,
        "intermediate_size": 96,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 8,
    },
    "heads wider than the model": {
        "hidden_size": 24,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}


def make_config(shape: str, **changes: object) -> MoxinConfig:
    values = {
        "vocab_size": 97,
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    return MoxinConfig(**{**values, **SHAPES[shape], **changes})


def make_pair(
    config: MoxinConfig, implementation: str = "eager"
) -> tuple[MoxinForCausalLM, MistralForCausalLM]:
    torch.manual_seed(0)
    ours = MoxinForCausalLM(config).eval()
    theirs = MistralForCausalLM(
        MistralConfig(**config.to_hf_dict(), attn_implementation=implementation)
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def tokens(config: MoxinConfig, batch: int, length: int) -> Tensor:
    return torch.randint(
        config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize(
    "length", [1, 15, 16, 17, 83], ids=lambda n: f"{n} tokens over a window of 16"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape: str, length: int, backend: str) -> None:
    config = make_config(shape)
    ours, theirs = make_pair(config)
    ours.attention_backend = backend
    ids = tokens(config, 2, length)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_the_parity_test_would_notice_a_missing_window() -> None:
    """Without the window the logits differ."""
    config = make_config("grouped heads")
    ours, _ = make_pair(config)
    windowless, _ = make_pair(make_config("grouped heads", sliding_window=None))
    ids = tokens(config, 1, 40)
    with torch.no_grad():
        difference = (ours(ids) - windowless(ids)).abs().amax(dim=(0, 2))
    assert difference[:16].max() < 1e-5 < difference[16:].min()


def test_thirty_six_blocks_equal_transformers_with_sdpa() -> None:
    config = make_config("grouped heads", num_hidden_layers=36, initializer_range=0.02)
    ours, theirs = make_pair(config, "sdpa")
    ids = tokens(config, 2, 50)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_gradients_equal_transformers() -> None:
    config = make_config("grouped heads", initializer_range=0.05)
    ours, theirs = make_pair(config)
    ids = tokens(config, 2, 40)
    for model in (ours, theirs):
        logits = model(ids) if model is ours else model(ids).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            expected[name].grad,
            rtol=1e-3,
            atol=1e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_given_positions_are_used_as_transformers_uses_them() -> None:
    config = make_config("grouped heads", sliding_window=None)
    ours, theirs = make_pair(config)
    ids = tokens(config, 1, 12)
    positions = torch.arange(12)[None] * 3 + 20
    with torch.no_grad():
        expected = theirs(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(ours(ids, position_ids=positions), expected, rtol=0, atol=1e-5)


def test_state_dict_has_exactly_the_names_and_shapes_of_mistral() -> None:
    config = make_config("grouped heads")
    with torch.device("meta"):
        ours = MoxinForCausalLM(config)
        theirs = MistralForCausalLM(MistralConfig(**config.to_hf_dict()))
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }


def test_full_scale_has_8_114_180_096_parameters() -> None:
    with torch.device("meta"):
        model = MoxinForCausalLM(MoxinConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_114_180_096
    # 9 tensors per block and 3 others, as in the index of the released weights.
    assert len(model.state_dict()) == 327
    assert count_parameters(MoxinConfig())["total"] == 8_114_180_096
    mistral = MoxinConfig(num_hidden_layers=32)
    assert count_parameters(mistral)["total"] == 7_241_732_096
