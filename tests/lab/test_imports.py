"""Every notebook and command imports `lab` first, so importing all of it imports no model code."""

import subprocess
import sys

CODE = """
import pkgutil, sys
import moxin_lab.lab
for module in pkgutil.walk_packages(moxin_lab.lab.__path__, "moxin_lab.lab."):
    __import__(module.name)
heavy = {"torch", "lightning", "transformers", "datasets", "papermill", "matplotlib"}
print(len([name for name in sys.modules if name.startswith("moxin_lab.lab.")]))
sys.exit(" ".join(sorted(heavy & set(sys.modules))) or 0)
"""


def test_no_module_of_the_lab_imports_torch_directly_or_through_others():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 10
