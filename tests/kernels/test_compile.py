"""Kernels compile for the GPU for which they are written, with the locked version of Triton. The
interpreter would not notice if they did not.
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
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=400
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("compiled") == 14
