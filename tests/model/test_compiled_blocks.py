"""Compiled blocks: the same losses and gradients to rounding, one graph for all blocks and lengths, training steps alone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from moxin_lab.model import decoder
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import generate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = MoxinConfig(
    vocab_size=61, hidden_size=32, intermediate_size=112, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, sliding_window=8, max_position_embeddings=128, initializer_range=0.2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Graphs and their count begin at nothing, so no test leans on another's."""

    def forget() -> None:
        torch.compiler.reset()
        counters.clear()
        decoder._compiled_block.cache_clear()

    forget()
    yield
    forget()


def make(*, compiled: bool, checkpointing: str = "none") -> MoxinForCausalLM:
    model = MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(5), activation_checkpointing=checkpointing)
    model.compile_blocks = compiled
    return model.train().to(DEVICE)


def ids(length: int) -> Tensor:
    return torch.randint(61, (3, length), generator=torch.Generator().manual_seed(length)).to(DEVICE)


def step(model: MoxinForCausalLM, tokens: Tensor, documents: Tensor | None = None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    model.zero_grad(set_to_none=True)
    logits = model(tokens[:, :-1], document_ids=documents)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_gradients_are_those_of_plain_blocks(checkpointing: str, packed: bool) -> None:
    plain, compiled = make(compiled=False), make(compiled=True, checkpointing=checkpointing)
    for length in (22, 9):
        documents = (torch.arange(length - 1, device=DEVICE) // 6).expand(3, -1) if packed else None
        loss, gradients = step(plain, ids(length), documents)
        other, others = step(compiled, ids(length), documents)
        assert other == pytest.approx(loss, abs=1e-5)
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert counters["stats"]["unique_graphs"] > 0


def test_all_blocks_models_and_lengths_share_one_graph() -> None:
    first, second = make(compiled=True), make(compiled=True)
    for model in (first, second):
        for length in (22, 17, 30):
            step(model, ids(length))
    assert counters["stats"]["unique_graphs"] == 1


def test_evaluation_and_generation_are_not_compiled() -> None:
    model = make(compiled=True)
    tokens = ids(12)
    made = generate(model.eval(), tokens, max_new_tokens=4)
    with torch.no_grad():
        model.train()(tokens)
    model.eval()(tokens)
    assert counters["stats"]["unique_graphs"] == 0
    assert torch.equal(made, generate(make(compiled=False).eval(), tokens, max_new_tokens=4))


def test_selective_checkpointing_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ValueError, match="selective checkpointing chooses among operations, which compiled blocks have fused"
    ):
        step(make(compiled=True, checkpointing="selective"), ids(9))
