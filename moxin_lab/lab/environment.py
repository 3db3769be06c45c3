"""What a stage ran on (versions, machine, state of the repository) and its peak memory.

Guarantees: neither the host's name nor the user's is recorded, for records are published; asking
imports nothing heavy.
Out of scope: memory of a GPU.
"""

import platform
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from moxin_lab import threads

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "datasets",
    "daft",
    "lm-eval",
    "papermill",
    "matplotlib",
    "pandas",
)


def installed_version(package: str) -> str | None:
    """The version of a package, None if it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell the model."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_state(root: Path) -> dict[str, Any]:
    """Commit, and whether tracked files differ from it; both None outside a git clone."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": commit,
        "git_dirty": None if commit is None or changed is None else bool(changed),
    }


def describe_environment(root: Path) -> dict[str, Any]:
    """Python, package versions, CPU, memory, GPU; the GPU only if torch is imported already."""
    torch = sys.modules.get("torch")
    gpu = None
    if torch is not None and torch.cuda.is_available():
        gpu = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": threads.usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "packages": {name: installed_version(name) for name in PACKAGES},
        **git_state(root / "moxin_lab"),  # a root beside a checkout has a link to its package
    }


class PeakMemory:
    """Largest resident memory of this process and its children together, sampled every `interval`
    seconds. A page that several of them share, as forked ones do, counts once.

    Sampling can miss a spike shorter than the interval; for the process itself the kernel's own
    high-water mark closes that gap.
    """

    def __init__(self, interval: float = 0.25) -> None:
        self._interval = interval
        self._largest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        process, pause = psutil.Process(), self._interval
        while not self._stop.wait(pause):
            began = time.monotonic()
            self._largest = max(self._largest, _resident_bytes(process))
            # Counting pages keeps processes from mapping more: at most a twentieth of the time.
            pause = max(self._interval, 20 * (time.monotonic() - began))

    def stop(self) -> int:
        """End the sampling; largest number of bytes seen."""
        import resource

        self._stop.set()
        self._thread.join()
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        return max(self._largest, own)


def _resident_bytes(process: psutil.Process) -> int:
    """Of a process and its children. With children it is the sum of proportional sizes, where the
    system has them (Linux): resident sizes would count a forked worker's copy of what it shares.
    """
    children = process.children(recursive=True)
    if not children:
        return process.memory_info().rss
    return sum(_proportional_bytes(member) for member in (process, *children))


def _proportional_bytes(process: psutil.Process) -> int:
    """0 for a process that has ended meanwhile, reaped or not."""
    try:
        size = process.memory_full_info()
        return getattr(size, "pss", size.rss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:  # a program with more rights than this one
        return process.memory_info().rss
