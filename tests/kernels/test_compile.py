"""Kernels compile for the GPU they are written for, whatever Triton the lock holds: an interpreter
would not notice.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_every_kernel_compiles_for_hopper_without_a_gpu(repository: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(repository),
    }
    script = repository / "tests" / "kernels" / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == 14
