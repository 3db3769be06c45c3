"""How the threads of PyTorch on the CPU wait for each other, and how many there are. Imported
first, by `moxin_lab` itself.

A training step on the CPU is some thousand parallel regions, and each ends with threads that wait
for the last one. By default they spin for milliseconds. On cores that other processes want as well,
a thread then spends its share of a core on waiting for a thread that this core would have to run:
with one busy process beside it, a step of the tiny model took 26.4 s instead of 0.69 s. Here they
spin for 1,000 turns and then sleep:

    busy processes beside a training on 2 cores             0       1       2       4
    seconds per step, default                            0.69   26.45    3.39    4.22
    seconds per step, 5,000 turns                        0.71    2.08    1.90   11.27
    seconds per step, 1,000 turns                        0.74    1.25    1.95    3.70
    seconds per step, no spinning                        0.80    1.47    1.80    3.36 (100 turns)
    seconds per step, its fair share of the cores        0.69    1.04    1.38    2.07

(Two pinned cores of an Intel Xeon server, torch 2.11, two threads, tiny scale's decoder with 16
rows of 128 tokens, one run each, November 2026.)

Guarantees: results do not depend on the spin count; what the user has set in the environment stays;
imports nothing heavy.
Out of scope: libraries with thread pools of their own (Daft, tokenizers), and a torch that was
imported before.
"""

import math
import os
from pathlib import Path

SPIN_COUNT = "1000"


def configure() -> None:
    """Set GOMP_SPINCOUNT, and OMP_NUM_THREADS where a CPU quota is lower than the number of cores,
    for this process and its children. GNU OpenMP reads both once, when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if usable_cores() < _cores_of_affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use at once: the smaller of its affinity mask and its cgroup's
    CPU quota, at least 1.

    `os.cpu_count` is neither: it counts the machine's cores.
    """
    return max(1, math.floor(min(_cores_of_affinity(), _quota(cgroup))))


def _cores_of_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity masks


def _quota(cgroup: Path) -> float:
    """CPU seconds per second that the cgroup (version 2, else 1) allows; infinity for no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if limit in ("max", "-1") else int(limit) / int(period)
