"""What a training is: equal where it is the same, named where it differs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from moxin_lab.training.identity import (
    changes,
    digest,
    flat,
    function_name,
    identity,
    weights_digest,
)

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def plain(value: object) -> object:
    """A form in which two values compare as the digest sees them."""
    if isinstance(value, dict):
        return ("mapping", sorted((key, plain(one)) for key, one in value.items()))
    if isinstance(value, list):
        return ("sequence", [plain(one) for one in value])
    return (type(value).__name__, value)


@given(values, values)
def test_digests_are_equal_exactly_for_equal_values(left: object, right: object) -> None:
    assert (digest(left) == digest(right)) == (repr(plain(left)) == repr(plain(right)))


@dataclass
class Example:
    ids: np.ndarray
    name: str


def test_arrays_tensors_and_dataclasses_count_with_content_shape_and_type() -> None:
    ids = np.arange(6)
    digests = [
        digest(Example(ids, "a")),
        digest(Example(ids, "b")),
        digest(Example(ids + 1, "a")),
        digest(Example(ids.reshape(2, 3), "a")),
        digest(Example(ids.astype(np.int32), "a")),
        digest(torch.zeros(3, dtype=torch.bfloat16)),
        digest(torch.tensor([0, 0, 1], dtype=torch.bfloat16)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(ids[::2]) == digest(ids[::2].copy())
    assert digest(torch.arange(6)[::2]) == digest(torch.arange(6)[::2].clone())
    with pytest.raises(TypeError, match="a function has no digest"):
        digest([print.__class__, lambda: None][1])


def test_weights_have_the_digest_of_their_bits() -> None:
    def model(**changes: float) -> torch.nn.Module:
        layer = torch.nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
            layer.bias.zero_()
            for index, value in changes.items():
                layer.weight.view(-1)[int(index)] = value
        return layer

    same = weights_digest(model())
    assert weights_digest(model()) == same
    assert weights_digest(model(**{"3": 3.0000002})) != same
    assert weights_digest(model(**{"3": 4.0, "4": 3.0})) != same  # exchanged
    assert weights_digest(model().double()) != same
    with torch.device("meta"):
        assert weights_digest(torch.nn.Linear(3, 2)) != weights_digest(torch.nn.Linear(2, 3))


class Section(BaseModel):
    learning_rate: float
    checkpoint_every_steps: int
    phases: tuple[dict[str, int], ...]


@pytest.mark.parametrize("kind", [Section, SimpleNamespace])
def test_settings_of_every_kind_are_compared_leaf_by_leaf(kind: type) -> None:
    settings = kind(learning_rate=3e-4, checkpoint_every_steps=5, phases=({"steps": 4},))
    assert flat(settings) == {
        "learning_rate": 3e-4,
        "checkpoint_every_steps": 5,
        "phases.0.steps": 4,
    }
    model = torch.nn.Linear(3, 2)
    old = identity(settings, "data", model, ranks=1)
    new = identity(
        kind(learning_rate=1e-3, checkpoint_every_steps=7, phases=({"steps": 4}, {"steps": 1})),
        "data",
        model,
        ranks=2,
    )
    assert changes(old, old) == {}
    assert changes(old, new) == {
        "learning_rate": "was 0.0003, is 0.001",
        "phases.1.steps": "was absent, is 1",
        "ranks": "was 1, is 2",
    }
    assert changes({"clip": float("nan")}, {"clip": float("nan")}) == {}
    with pytest.raises(TypeError, match="setting hook is a builtin_function"):
        flat({"hook": print})


def test_what_is_trained_and_dropout_are_part_of_a_training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.0))
    before = identity({}, "data", model)
    model[1].p = 0.25
    assert changes(before, identity({}, "data", model)) == {"1.p": "was absent, is 0.25"}
    model[1].p = 0.0
    model[0].bias.requires_grad_(False)
    assert list(changes(before, identity({}, "data", model))) == ["trained"]
    model[0].dropout_p = 0.1  # as the decoder has it
    assert identity({}, "data", model)["0.dropout_p"] == 0.1


def test_a_function_is_called_by_its_name_and_the_values_that_it_carries() -> None:
    assert function_name(weights_digest) == "weights_digest"
    assert function_name(partial(changes, beta=0.1)) == "changes with {'beta': 0.1}"
    assert function_name(torch.nn.MSELoss()) == "MSELoss with {'reduction': 'mean'}"
    assert function_name(torch.optim.SGD) == "SGD" and function_name(max) == "max"


class Scale:
    def __init__(self, beta: float) -> None:
        self.beta, self._cache = beta, object()

    def loss(self, x: float) -> float:
        return self.beta * x

    __call__ = loss


def filled(beta: float) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, beta)
    return model


def nested(beta: float) -> Callable:
    def loss(x: float) -> float:
        return loss(x - 1) if x > 9 else beta * x

    return loss


@pytest.mark.parametrize(
    "make",
    [
        nested,
        lambda beta: lambda x: beta * x,
        lambda beta: lambda x, scale=beta: scale * x,
        lambda beta: lambda x, *, scale=beta: scale * x,
        lambda beta: (lambda x: 0.1 * x) if beta < 1 else (lambda x: 2.0 * x),
        lambda beta: partial(pow, torch.full((3,), beta)),
        lambda beta: partial(max, key=nested(beta)),
        lambda beta: (lambda table: lambda x: table[x])({"a": [beta, 1.0]}),
        lambda beta: (lambda model: lambda x: model(x))(filled(beta)),
        lambda beta: filled(beta).forward,
        lambda beta: Scale(beta).loss,
        Scale,
        lambda beta: torch.nn.HuberLoss(delta=beta),
    ],
)
def test_another_value_in_a_closure_or_an_object_is_another_training(make: Callable) -> None:
    assert function_name(make(0.5)) == function_name(make(0.5))
    assert function_name(make(0.5)) != function_name(make(2.5))
    json.dumps(function_name(make(0.5)))
