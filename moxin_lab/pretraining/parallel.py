"""The decoder over several devices: tensor parallelism, activation checkpointing, compiled blocks
and FSDP2, in this order; its checkpoints as folders of shards, and those as Hugging Face folders.

    settings = ParallelSettings(data=4, tensor=2, activation_checkpointing="full")
    trainer.fit(model, stream, ..., parallel=settings)     # calls `shard` in configure_model
    to_pretrained(resume_point, config, folder)            # a distributed checkpoint's weights
    to_distributed(folder, shards)                         # and back

    mesh [data, tensor]      weights                            a step
    -------------------      --------------------------------   ----------------------------------
    tensor (in a host)       q, k, v, gate, up by outputs, o    every rank of a group reads the same
                             and down by inputs, embedding      rows; two sums a block and pass; the
                             and head by vocabulary             loss of its share of the tokens
    data                     FSDP2: rows of every matrix, a     other rows; a block's weights are
                             block at a time                    gathered as it runs

A model on the meta device is never whole anywhere: each rank keeps its parts of one parameter after
the other. A parameter's values are drawn from (seed, name) by a generator of its own, whole and on
every rank, and cut: so they depend on the kind of device, not on the number of ranks.

Guarantees: gradients are those of one process up to the order of sums (tests/pretraining/
test_parallel.py states the tolerance); under bf16-mixed products run in bfloat16, and gradients are
summed over data ranks in float32, over tensor ranks as they are; weights of a distributed
checkpoint are the same to the bit on any number of ranks, and in the Hugging Face folder made of
it.
Out of scope: sequence, context and pipeline parallelism, several optimizers; float16 with a scaler,
which Lightning's strategy refuses; generating with a split model.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from moxin_lab.model import convert
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import ACTIVATION_CHECKPOINTING, MoxinForCausalLM
from moxin_lab.scales.sections import PretrainingSettings

DATA, TENSOR = "data_parallel", "tensor_parallel"  # Lightning's names of the mesh's dimensions
PREFIX = "model."  # of the model's parameters in a training's checkpoint
BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
BY_INPUTS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class ParallelSettings:
    """How a model lies on `data x tensor` ranks. activation_checkpointing: a name of the decoder's.
    seed: of the weights of a model on the meta device.
    """

    data: int
    tensor: int = 1
    activation_checkpointing: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data < 1 or self.tensor < 1:
            raise ValueError(f"data {self.data} x tensor {self.tensor}: both must be at least 1")
        if self.activation_checkpointing not in ACTIVATION_CHECKPOINTING:
            raise ValueError(
                f"unknown activation_checkpointing {self.activation_checkpointing!r}: "
                f"available are {', '.join(ACTIVATION_CHECKPOINTING)}"
            )

    @property
    def ranks(self) -> int:
        return self.data * self.tensor


def layout(settings: PretrainingSettings, seed: int) -> ParallelSettings | None:
    """The layout of a `pretraining` section, None for one process. seed: of the weights. Raises
    ValueError if this process is not one of as many ranks, with the command that starts them.
    """
    started = int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else 0
    if settings.parallel is None:
        if started > 1:
            raise ValueError(
                f"torchrun started {started} ranks, and the scale's pretraining.parallel is null: "
                "state a layout there or start one process"
            )
        return None
    found = ParallelSettings(**settings.parallel.model_dump(), seed=seed)
    if started != found.ranks:
        raise ValueError(
            f"the scale's pretraining.parallel is data {found.data} x tensor {found.tensor}, so "
            f"{found.ranks} rank(s) of torchrun train, not {started or 'a process without it'}: "
            f"torchrun --nproc-per-node {found.ranks} --no-python moxin-lab run --scale SCALE "
            "--only 04 (on several hosts: scripts/full_scale.slurm)"
        )
    return found


def trainer_options(options: dict[str, Any], settings: ParallelSettings) -> dict[str, Any]:
    """Lightning's options for these settings: its strategy, and as many devices, and hosts of
    torchrun's, as the options do not say. Raises ValueError if the options start another number
    of ranks.
    """
    hosts = 1
    if torch.distributed.is_torchelastic_launched():
        ranks = os.environ["WORLD_SIZE"]
        hosts = int(ranks) // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))  # unset: one host
    nodes = int(options.get("num_nodes", hosts))
    devices = options.get("devices", settings.ranks // nodes)
    if devices * nodes != settings.ranks:
        raise ValueError(
            f"data {settings.data} x tensor {settings.tensor} are {settings.ranks} ranks, and "
            f"{nodes} node(s) with {devices} device(s) start {devices * nodes}: change one of them"
        )
    if "strategy" in options:
        raise ValueError(f"strategy {options['strategy']!r}: with `parallel` it is chosen here")
    strategy = ModelParallelStrategy(
        data_parallel_size=settings.data, tensor_parallel_size=settings.tensor
    )
    return {**options, "num_nodes": nodes, "devices": devices, "strategy": strategy}


def check(model: MoxinForCausalLM, settings: ParallelSettings, precision: str) -> None:
    """Raises ValueError for a model that does not divide into these parts."""
    config, tensor = model.config, settings.tensor
    if precision == "16-mixed":
        raise ValueError(
            "precision 16-mixed needs a loss scaler, which FSDP2 lacks: use bf16-mixed"
        )
    if tensor == 1:
        return
    if config.tie_word_embeddings or config.attention_dropout or config.mlp_dropout:
        raise ValueError(
            "tensor parallelism splits models without dropout and with a head of their own: set "
            "tie_word_embeddings to false and the dropouts to 0, or tensor to 1"
        )
    for name in ("num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(config, name) % tensor:
            raise ValueError(
                f"{name} {getattr(config, name)} does not divide into {tensor} parts: change tensor"
            )


def shard(
    model: MoxinForCausalLM,
    mesh: DeviceMesh,
    settings: ParallelSettings,
    *,
    precision: str,
    device: torch.device,
    compiled: bool,
) -> Callable[..., Any]:
    """Put this rank's part of the model onto its device; returns `call(function, *arguments)`,
    which runs `function(model, *arguments)` with the parameters outside of blocks gathered.

    mesh: [data, tensor] with Lightning's names. A model with weights, which must be the same on
    every rank, keeps them; one on the meta device is initialised (`initial_weight`).
    """
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.activation_checkpointing = settings.activation_checkpointing
    if settings.tensor > 1:
        split_tensors(model, mesh[TENSOR])
    if compiled:
        for block in model.model.layers:
            # Its forward pass alone: FSDP2's hooks, which wait for other ranks, stay outside.
            block.forward = torch.compile(block.forward, dynamic=False)
    # The stream's dtype is autocast's, and rotary angles stay float32: no input is cast.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh[DATA], mp_policy=policy)
    if on_meta:
        model.to_empty(device=device)
        if precision == "bf16-true":
            model.to(torch.bfloat16)
        fill(
            model,
            mesh,
            lambda name, shape: initial_weight(model.config, name, shape, settings.seed, device),
        )
    model.call = lambda function, *arguments: function(model, *arguments)
    register_fsdp_forward_method(model, "call")
    return cast(Callable[..., Any], model.call)


# ---- tensor parallelism


def split_tensors(model: MoxinForCausalLM, mesh: DeviceMesh) -> None:
    """Every parameter as this rank's part on a one-dimensional mesh, norms as copies, and the sums
    over ranks before and after attention and feed-forward (Shoeybi et al. 2019, arXiv 1909.08053).
    """
    name = mesh.get_group().group_name
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        dim = split_dim(path)
        placement = Replicate() if dim is None else Shard(dim)
        part = distribute_tensor(weight.data, mesh, [placement])
        module.register_parameter("weight", nn.Parameter(part, weight.requires_grad))
    table = model.model.embed_tokens
    # PyTorch's RowwiseParallel returns a tensor that is still being summed, and a compiled block
    # gives such an input a wrong gradient (torch 2.13).
    table.forward = partial(_embed, table, mesh.get_local_rank(), name)
    for block in model.model.layers:
        for module in (block.self_attn, block.mlp):
            module.register_forward_pre_hook(
                lambda module, inputs: (_SumOfGradients.apply(inputs[0], name), *inputs[1:])
            )
            module.register_forward_hook(lambda module, inputs, output: _Sum.apply(output, name))


def _embed(table: nn.Embedding, rank: int, group: str, input_ids: Tensor) -> Tensor:
    """Rows of a table that is split by vocabulary: each rank's are zero outside its part."""
    weight = cast(DTensor, table.weight).to_local()
    here = input_ids - rank * len(weight)
    inside = (here >= 0) & (here < len(weight))
    found = F.embedding(here.where(inside, 0), weight) * inside[..., None]
    return cast(Tensor, _Sum.apply(found, group))


def split_dim(name: str) -> int | None:
    """The dimension of a weight that tensor parallelism divides; None for a norm's."""
    parts = name.split(".")
    if any(part in BY_OUTPUTS for part in parts):
        return 0
    return 1 if any(part in BY_INPUTS for part in parts) else None


def _all_reduce(values: Tensor, group: str) -> Tensor:
    summed = torch.ops._c10d_functional.all_reduce(values.contiguous(), "sum", group)
    return torch.ops._c10d_functional.wait_tensor(summed)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient every rank has already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: str) -> Tensor:
        return _all_reduce(values, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SumOfGradients(torch.autograd.Function):
    """The values, whose gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: str) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient, ctx.group), None


class _Gather(torch.autograd.Function):
    """All ranks' parts below each other, whose gradient is this rank's part of the sum. DTensor's
    own gives tensors that are still being gathered, see `split_tensors`.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: str, ranks: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        whole = torch.ops._c10d_functional.all_gather_into_tensor(part.contiguous(), ranks, group)
        return torch.ops._c10d_functional.wait_tensor(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        part = torch.ops._c10d_functional.reduce_scatter_tensor(
            gradient.contiguous(), "sum", ctx.ranks, ctx.group
        )
        return torch.ops._c10d_functional.wait_tensor(part), None, None


def own_share(
    hidden_states: Tensor, weight: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States [B, T, C] and labels [B, T] whose loss this rank computes, and the whole head [V, C].

    Without tensor parallelism these are the arguments. With it the ranks of a group, which hold the
    same states, divide the tokens, and gather the head: [N, C], [V, C], [N].
    """
    if not isinstance(weight, DTensor):
        return hidden_states, weight, labels
    mesh = weight.device_mesh
    rank, ranks = mesh.get_local_rank(), mesh.size()
    shared: Tensor = _SumOfGradients.apply(hidden_states, mesh.get_group().group_name)
    own_states = shared.flatten(0, 1).tensor_split(ranks)[rank]
    own_labels = labels.flatten().tensor_split(ranks)[rank]
    whole = _Gather.apply(weight.to_local(), mesh.get_group().group_name, ranks)
    return own_states, whole, own_labels


# ---- values of parameters


def initial_weight(
    config: MoxinConfig, name: str, shape: torch.Size, seed: int, device: torch.device
) -> Tensor:
    """A whole parameter's first values, float32, from (seed, name) alone; the distributions are
    those of `MoxinForCausalLM.init_weights`.
    """
    if len(shape) == 1:
        return torch.ones(shape, device=device)
    number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device).manual_seed(number)
    std = config.initializer_range
    if split_dim(name) == 1:  # writes into the residual stream
        std /= (2 * config.num_hidden_layers) ** 0.5
    return torch.empty(shape, device=device).normal_(0.0, std, generator=generator)


@torch.no_grad()
def fill(model: nn.Module, mesh: DeviceMesh, values: Callable[[str, torch.Size], Tensor]) -> None:
    """Set this rank's part of each parameter of a sharded model. values: (name, shape) to the whole
    parameter.
    """
    data, tensor = mesh[DATA], mesh[TENSOR]
    for name, parameter in model.named_parameters():
        part = values(name, parameter.shape)
        dim = split_dim(name)
        if dim is not None:
            part = part.chunk(tensor.size(), dim)[tensor.get_local_rank()]
        rows = part.chunk(data.size())  # as FSDP2 cuts: the last ranks may have no row
        rank = data.get_local_rank()
        own = rows[rank] if rank < len(rows) else part[:0]
        cast(DTensor, parameter).to_local().copy_(own)


@torch.no_grad()
def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU, on the first rank; one parameter at a time is whole on a device.
    Every rank must call it; the others get nothing.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    weights = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            weights[name] = whole.to("cpu", copy=True)
    return weights


# ---- checkpoints


def to_pretrained(
    checkpoint: str | Path,
    config: MoxinConfig,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the weights of a distributed checkpoint (a resume point's folder) as a Hugging Face
    folder, in one process. dtype: of the checkpoint's weights. Raises ValueError for a checkpoint
    of another model, and for a damaged one.
    """
    model = _empty(config, dtype)
    _check_is_of(model, checkpoint)
    try:
        dcp.load(_named(model), checkpoint_id=checkpoint, no_dist=True)
    except CheckpointException as error:
        causes = [str(one[0]) for one in error.failures.values()]
        raise ValueError(f"{checkpoint} is damaged: {'; '.join(causes)}") from error
    return convert.save_pretrained(model, folder)


def to_distributed(folder: str | Path, checkpoint: str | Path) -> Path:
    """Write a Hugging Face folder's weights as a distributed checkpoint, in one process."""
    model = convert.from_pretrained(folder)
    dcp.save(_named(model), checkpoint_id=checkpoint, no_dist=True)
    return Path(checkpoint)


def save_distributed(model: nn.Module, checkpoint: str | Path) -> None:
    """Write a sharded model's weights as a distributed checkpoint. Every rank must call it, and
    writes its own.
    """
    dcp.save(_named(model), checkpoint_id=checkpoint)


def load_distributed(model: nn.Module, checkpoint: str | Path) -> None:
    """Set a sharded model to the weights of a distributed checkpoint. Every rank must call it."""
    dcp.load(_named(model), checkpoint_id=checkpoint)


def save_pretrained(model: MoxinForCausalLM, folder: str | Path) -> None:
    """Write a sharded model as a Hugging Face folder. Every rank must call it; the first writes."""
    weights = whole_weights(model)
    if weights:
        with torch.device("meta"):
            copy = MoxinForCausalLM(model.config)
        copy.load_state_dict(weights, assign=True)
        convert.save_pretrained(copy, folder)
    torch.distributed.barrier()


def _check_is_of(model: nn.Module, checkpoint: str | Path) -> None:
    """Raises ValueError unless a distributed checkpoint has this model's weights, of these shapes,
    and no other: PyTorch leaves out what the model lacks without a word.
    """
    try:
        described = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except (OSError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{checkpoint} is no whole distributed checkpoint: {error}") from error
    start = f"state_dict.{PREFIX}"
    there = {
        name.removeprefix(start): tuple(entry.size)
        for name, entry in described.items()
        if name.startswith(start) and isinstance(entry, TensorStorageMetadata)
    }
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    different = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    if different:
        name = different[0]
        raise ValueError(
            f"{checkpoint} is of another model: {name} is {there.get(name, 'missing')} there and "
            f"{here.get(name, 'missing')} here, and {len(different) - 1} more differ"
        )


def _empty(config: MoxinConfig, dtype: torch.dtype) -> MoxinForCausalLM:
    with torch.device("meta"):
        model = MoxinForCausalLM(config).to(dtype)
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def _named(model: nn.Module) -> dict[str, Any]:
    """The weights under their names in a training's checkpoint; the tensors are the model's own."""
    return {"state_dict": {PREFIX + name: tensor for name, tensor in model.state_dict().items()}}
