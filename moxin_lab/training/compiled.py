"""A training's blocks as compiled code, its passes as CUDA graphs, and its batches prepared beside
the GPU.

    with compiled_blocks(model.model.layers, on=True):
        trainer.fit(...)             # each block runs compiled; afterwards it is as it was
    graphed = GraphedPass(loss, model.parameters())
    sums = graphed.load(batch)       # captured when the shape is new
    graphed.replay()                 # both passes: `sums` and the gradients are this batch's

Guarantees: the modules, their parameters and their names stay the same objects, so checkpoints do
not change; one compilation serves all blocks of a shape; outside the context nothing is compiled.
Out of scope: graphs over several blocks (a compiled whole gains 0.3 % at full width,
reports/released/h100, and takes ten times as long to compile).
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from moxin_lab.threads import usable_cores

MAX_WORKERS = 6
"""Processes that prepare batches for a GPU, where there are cores for them."""


@contextmanager
def compiled_blocks(blocks: Iterable[nn.Module], *, on: bool) -> Iterator[None]:
    """Within it, calls of the blocks run compiled for the shapes that they get, if `on`."""
    # `nn.Module.compile` keeps the module and its parameter names, which `torch.compile` does not.
    compiled = [block for block in blocks if on]
    for block in compiled:
        block.compile(dynamic=False)
    try:
        yield
    finally:
        for block in compiled:
            block._compiled_call_impl = None  # what `compile` set; PyTorch has no call to undo it


def loader(parts: Dataset, sampler: Sampler, device: torch.device) -> DataLoader:
    """Batches `parts[i]` for the indices of `sampler`, in their order.

    For a GPU they are made in other processes and kept in pinned memory, from which Lightning
    copies them without waiting; elsewhere in this process, which has the same cores.
    """
    if device.type != "cuda":
        return DataLoader(parts, batch_size=None, sampler=sampler, num_workers=0)
    return DataLoader(
        parts,
        batch_size=None,
        sampler=sampler,
        num_workers=max(1, min(MAX_WORKERS, usable_cores() // 2)),
        # A process that was itself spawned (`side_by_side`) would spawn these, and send them the
        # whole corpus by pickle, which not every stream allows.
        multiprocessing_context="fork",
        prefetch_factor=4,
        pin_memory=True,
        worker_init_fn=_ignore_sigterm,
    )


def _ignore_sigterm(worker: int) -> None:
    """A cluster's SIGTERM goes to all processes of a job, and the step that it meets still needs
    its batch (resume.py). PyTorch ends the workers without a signal.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class GraphedPass:
    """Forward and backward pass of one batch as a CUDA graph, which starts its two thousand kernels
    at once: started one by one they took longer (201 ms a step of the small scale) than they ran
    (170 ms, one H200).

    loss: batch to `loss`, which is differentiated, and further sums; it must neither wait for the
    device nor draw random numbers. parameters: those that get gradients; each replay gives them
    new ones, so that gradients of several batches do not add up.
    """

    def __init__(
        self, loss: Callable[[dict[str, Tensor]], dict[str, Tensor]], parameters: Iterable[Tensor]
    ) -> None:
        self._loss, self._parameters = loss, [p for p in parameters if p.requires_grad]
        self._inputs: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes a batch over; returns the tensors in which `replay` leaves its sums."""
        shapes = {name: values.shape for name, values in batch.items()}
        if shapes != {name: values.shape for name, values in self._inputs.items()}:
            self._capture(batch)
        for name, values in batch.items():
            self._inputs[name].copy_(values, non_blocking=True)
        return self._sums

    def replay(self) -> None:
        assert self._graph is not None
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _capture(self, batch: dict[str, Tensor]) -> None:
        # The memory of an earlier shape's graph goes back first.
        self._graph, self._sums, self._gradients = None, {}, []
        self._clear()
        torch.cuda.empty_cache()
        self._inputs = {name: values.clone() for name, values in batch.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiling and loading kernels cannot be captured
            for _ in range(2):
                self._run()
                self._clear()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The loader's thread may pin memory meanwhile, which is no part of the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._sums = self._run()
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph

    def _run(self) -> dict[str, Tensor]:
        sums = self._loss(self._inputs)
        with torch.autocast("cuda", enabled=False):
            sums["loss"].backward()
        return {name: value.detach() for name, value in sums.items()}

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
