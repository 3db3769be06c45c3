"""What a training took: seconds, energy and steps of each phase, over all its attempts, and from
them FLOPs, utilisation, device hours and money.

    meter = Meter(stream, work / "spent.json", energy_meter())
    trainer.fit(..., callbacks=[meter])
    table(read(work / "spent.json"), stream, model.config, ranks=1, ceiling=matmul_ceiling("cuda"))

Guarantees: a step that a killed attempt did and the next one repeats is paid twice and its tokens
count once; what a kill loses is at most the last `SAVE_SECONDS`; energy carries the method by which
it was found, and is never guessed without a word.
Out of scope: energy of processors, memory, network and cooling; waiting between attempts. Of
several ranks the first one's device is measured, and the others are taken to be like it.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from moxin_lab.lab.artifacts import read_json, write_json
from moxin_lab.model.config import (
    MoxinConfig,
    count_parameters,
    matrix_parameters,
    training_flops_per_token,
)
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.tables import PEAKS, STATED_TOKENS
from moxin_lab.scales.sections import ModelSettings, PretrainingSettings

SAVE_SECONDS = 30.0
DOLLARS_PER_HOUR = 2.5
"""Of one GPU, our choice: between what clouds asked for an H100 in 2025 and 2026, to be replaced by
the price that was paid."""
GENERAL_PURPOSE_FLOPS = 1e23
"""The indicative criterion of the Commission's guidelines on general-purpose AI, July 2025."""
COUNTER = "NVML total energy counter"
POWER_LIMIT = "power limit x hours, an upper bound"
NOT_MEASURED = "not measured"


class EnergyMeter(NamedTuple):
    """method: of COUNTER, POWER_LIMIT, NOT_MEASURED. joules: of the device up to now; for a power
    limit those since the start of the process at that limit; None without a method.
    """

    method: str
    joules: Callable[[], float | None]


def energy_meter(
    device: int | None = None,
    library: Any = None,
    clock: Callable[[], float] = time.monotonic,
) -> EnergyMeter:
    """How the energy of a device is found. device: index of a GPU for NVML; None: this process's,
    or none on a processor. library: NVML, by default the driver's.
    """
    if device is None and not torch.cuda.is_available():
        return EnergyMeter(NOT_MEASURED, lambda: None)
    if library is None:
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return EnergyMeter(NOT_MEASURED, lambda: None)
    handle = ctypes.c_void_p()
    if device is None:
        # by its identity, for CUDA_VISIBLE_DEVICES gives the devices other numbers
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        found = library.nvmlDeviceGetHandleByUUID
        name: Any = uuid.encode()
    else:
        found, name = library.nvmlDeviceGetHandleByIndex_v2, device
    if library.nvmlInit_v2() or found(name, ctypes.byref(handle)):
        return EnergyMeter(NOT_MEASURED, lambda: None)

    def counter() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1e3

    if counter() is not None:
        return EnergyMeter(COUNTER, counter)
    milliwatts = ctypes.c_uint()
    if library.nvmlDeviceGetEnforcedPowerLimit(handle, ctypes.byref(milliwatts)):
        return EnergyMeter(NOT_MEASURED, lambda: None)
    began = clock()
    return EnergyMeter(POWER_LIMIT, lambda: milliwatts.value / 1e3 * (clock() - began))


class Meter(Callback):
    """Writes into `file`, as one more attempt, what each phase takes from the first step of this
    process on. It never waits for the device: a phase is right to about a step.
    """

    def __init__(
        self,
        stream: TrainingStream,
        file: Path,
        energy: EnergyMeter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._file, self._energy, self._clock = stream, file, energy, clock
        self._attempts: list[dict[str, Any]] = []
        self._phases: dict[str, dict[str, Any]] = {}
        self._step = 0
        self._seconds, self._saved = 0.0, 0.0  # at the last step, and at the last write
        self._joules: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._attempts = read(self._file) if self._file.exists() else []
        self._phases = {}
        self._attempts.append({"energy": self._energy.method, "phases": self._phases})
        self._step = trainer.global_step
        self._seconds, self._joules = self._clock(), self._energy.joules()
        self._saved = self._seconds

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._step:  # within an accumulated step
            return
        phase = str(self._stream.phase_of(self._step))
        self._step = trainer.global_step
        seconds, joules = self._clock(), self._energy.joules()
        row = self._phases.setdefault(phase, {"steps": 0, "seconds": 0.0, "joules": None})
        row["steps"] += 1
        row["seconds"] += seconds - self._seconds
        if joules is not None and self._joules is not None:
            row["joules"] = (row["joules"] or 0.0) + joules - self._joules
        self._seconds, self._joules = seconds, joules
        if seconds - self._saved > SAVE_SECONDS or self._step == self._stream.num_steps:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved = self._seconds
        if trainer.is_global_zero:
            write_json(self._file, self._attempts)


def read(file: Path) -> list[dict[str, Any]]:
    """The attempts that meters wrote into a file. Raises LabError for a file that is none."""
    attempts: list[dict[str, Any]] = read_json(file)
    return attempts


def peak_of(name: str | None) -> float | None:
    """Dense bf16 peak in FLOP/s of a GPU by its name, None for one that `tables.PEAKS` lacks."""
    known = {**PEAKS, "H200": PEAKS["H100"]}  # the same processor with other memory
    found = [peak for device, peak in known.items() if device in (name or "")]
    return found[0] if found else None


def device_name() -> str | None:
    """Of this process's GPU, None on a processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def matmul_ceiling(device: str, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some square products, bfloat16 on a GPU and float32 on a processor:
    what a training on this device can be compared with where its peak is never reached.
    """
    on_gpu = device == "cuda"
    n = size or (8192 if on_gpu else 1024)
    left = torch.ones(n, n, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        torch.mm(left, left)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def table(
    attempts: list[dict[str, Any]],
    stream: TrainingStream,
    config: MoxinConfig,
    *,
    ranks: int = 1,
    device: str | None = None,
    ceiling: float | None = None,
    dollars_per_hour: float = DOLLARS_PER_HOUR,
) -> pd.DataFrame:
    """One row for each phase and one for all. FLOPs are those of the tokens that count, with rows
    as one document each (`training_flops_per_token`), which is the most that attention can take;
    utilisation is those by the time of all attempts.

    device: name of the GPU; None: a processor, which has no price and no peak here.
    """
    rows = []
    methods = {attempt["energy"] for attempt in attempts}
    for index, phase in enumerate(stream.phases):
        parts = [a["phases"][str(index)] for a in attempts if str(index) in a["phases"]]
        joules = [part["joules"] for part in parts]
        tokens = phase.steps * stream.tokens_per_step
        rows.append(
            {
                "phase": phase.name,
                "tokens": tokens,
                "FLOPs": tokens * training_flops_per_token(config, phase.sequence_length),
                "steps paid": sum(part["steps"] for part in parts),
                "seconds": sum(part["seconds"] for part in parts),
                "joules": None if None in joules or not joules else sum(joules) * ranks,
            }
        )
    found = pd.DataFrame(rows).set_index("phase")
    known = found["joules"].notna().all()
    found.loc["all phases"] = found.sum()
    found["device hours"] = found["seconds"] * ranks / 3600
    rate = found["FLOPs"] / found["seconds"] / ranks
    peak = peak_of(device)
    found["% of peak"] = 100 * rate / peak if peak else None
    found["% of matmul"] = 100 * rate / ceiling if ceiling else None
    found["dollars"] = found["device hours"] * dollars_per_hour if device else None
    found["kWh"] = found["joules"] / 3.6e6 if known and len(methods) == 1 else None
    return found.drop(columns="joules")


def in_words(
    attempts: list[dict[str, Any]],
    *,
    ranks: int,
    device: str | None,
    ceiling: float,
    dollars_per_hour: float = DOLLARS_PER_HOUR,
) -> str:
    """What stands behind the columns of `table`."""
    methods = sorted({attempt["energy"] for attempt in attempts})
    peak = peak_of(device)
    listed = "no peak is listed for it" if peak is None else f"peak {peak / 1e12:,.0f} TFLOP/s"
    price = (
        f"\\${dollars_per_hour:.2f} per device hour, our choice" if device else "no price stated"
    )
    return (
        f"{len(attempts)} attempt(s) on {ranks} x {device or 'this processor'} ({listed}; its "
        f"fastest square product measured here {ceiling / 1e12:,.2f} TFLOP/s). Money: {price}. "
        f"Energy: {'; '.join(methods)}."
    )


def bill(
    file: Path, stream: TrainingStream, config: MoxinConfig, ranks: int
) -> tuple[pd.DataFrame, str]:
    """`table` on the device of this process, without what has no number, and `in_words`. file: of
    `Meter`.
    """
    attempts, device = read(file), device_name()
    ceiling = matmul_ceiling("cpu" if device is None else "cuda")
    given: dict[str, Any] = {"ranks": ranks, "device": device, "ceiling": ceiling}
    found = table(attempts, stream, config, **given).dropna(axis=1, how="all")
    found["FLOPs"] /= 1e12
    return found.rename(columns={"FLOPs": "10^12 FLOPs"}), in_words(attempts, **given)


def training_compute(
    vocab_size: int,
    model: ModelSettings,
    pretraining: PretrainingSettings,
    tokens: float = STATED_TOKENS,
) -> pd.DataFrame:
    """FLOPs of a training at so many tokens, divided over its phases as its steps are: by
    6ND, of the weights in products alone, and with attention in rows of one document; and their
    share of the 1e23 FLOPs from which the Commission's guidelines of July 2025 take a model for
    general-purpose.
    """
    config = MoxinConfig(vocab_size=vocab_size, **model.model_dump())
    phases = pretraining.phases
    steps = sum(phase.steps for phase in phases)
    with_attention = sum(
        training_flops_per_token(config, phase.sequence_length) * phase.steps / steps
        for phase in phases
    )
    rows = {
        "6ND, every parameter": 6 * count_parameters(config)["total"] * tokens,
        "weights in products": 6 * matrix_parameters(config) * tokens,
        "weights in products, and attention": with_attention * tokens,
    }
    found = pd.DataFrame({"10^22 FLOPs": rows}).rename_axis(index="counted")
    found["% of the line"] = found["10^22 FLOPs"] / GENERAL_PURPOSE_FLOPS * 100
    found["10^22 FLOPs"] /= 1e22
    return found
