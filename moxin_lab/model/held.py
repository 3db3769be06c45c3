"""What a training step holds in memory between its forward and its backward pass, measured.

    by_checkpointing(config, length=256, seed=0)    # one row per way of checkpointing

Guarantees: every tensor that is created in the forward pass and still referenced after it counts,
once per storage; weights and tokens do not. The same on every device.
Out of scope: what the allocator reserves, and the arithmetic from shapes (`arithmetic`).
"""

import gc
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import ACTIVATION_CHECKPOINTING, MoxinForCausalLM
from moxin_lab.model.measures import random_tokens


class Watch(TorchDispatchMode):
    """Counts projections (mm) and holds a weak reference to the storage of every tensor that is
    created while it is active.
    """

    def __init__(self) -> None:
        super().__init__()
        self.projections = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.projections += function is torch.ops.aten.mm.default
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = (reference, storage.nbytes())
        return output

    def alive(self, but: Sequence[Tensor]) -> int:
        """Bytes of the storages that are still referenced, without those of tensors in `but`."""
        excluded = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in but}
        return sum(
            size
            for key, (reference, size) in self.storages.items()
            if key not in excluded and not reference.expired()
        )


def by_checkpointing(config: MoxinConfig, length: int, seed: int) -> pd.DataFrame:
    """Bytes held for the backward pass of one text of `length` random tokens, float32, and whether
    the gradients are those without checkpointing, bit for bit.

    Index: checkpointing, none first. Columns: bytes held, times fewer, same gradients.
    """
    tokens = random_tokens(config, 1, length, seed)
    rows = []
    plain: list[Tensor | None] = []
    for name in ACTIVATION_CHECKPOINTING:
        model = MoxinForCausalLM(
            config,
            generator=torch.Generator().manual_seed(seed),
            activation_checkpointing=name,
        ).train()
        watch = Watch()
        with watch:
            loss = cross_entropy(model(tokens[:, :-1]).float().flatten(0, 1), tokens[0, 1:])
        gc.collect()
        held = watch.alive(but=[*model.parameters(), tokens])
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        plain = plain or gradients
        same = all(map(_same, gradients, plain))
        rows.append({"checkpointing": name, "bytes held": held, "same gradients": same})
    table = pd.DataFrame(rows).set_index("checkpointing")
    table.insert(1, "times fewer", table.loc["none", "bytes held"] / table["bytes held"])
    return table


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)
