"""Every section of `full.yaml` goes through the code that reads it: each notebook runs to its end
with the full recipe at toy sizes, on local files of the hub's schema.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moxin_lab import scales
from moxin_lab.stages import STAGES
from tests.scales import hub_files

pytestmark = pytest.mark.full_walk
TOY = Path(__file__).parent / "toy_full.yaml"
PROGRAM = Path(__file__).parent / "walk_notebooks.py"
LENGTHS = {2048: 64, 4096: 128}  # tokens per row of a phase, by full.yaml's
STEPS = 4


def write_scale(root: Path, repository: Path) -> Path:
    """toy_full.yaml with the phases of full.yaml at toy sizes and the paths of local hub files."""
    values = yaml.safe_load(TOY.read_text(encoding="utf-8"))
    full = yaml.safe_load((repository / "moxin_lab/scales/full.yaml").read_text(encoding="utf-8"))
    phases = full["pretraining"]["phases"]
    for phase in phases:
        phase |= {"steps": STEPS, "sequence_length": LENGTHS[phase["sequence_length"]]}
    values["pretraining"]["phases"] = phases
    values["hub"] = {"paths": hub_files.write_hub(root / "hub", repository)}
    path = root / "scales" / "toy_full.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def make_root(root: Path, repository: Path) -> Path:
    """A lab in `root` with toy data and the toy scale; returns `root`."""
    hub_files.write_root(root, repository)
    scale = scales.load(write_scale(root, repository))
    hub_files.write_llava(root, scale.vision.llava)
    hub_files.write_checkpoints(root, scale.vision.checkpoints, scale.vision.towers)
    return root


def walk(root: Path, repository: Path) -> dict[str, str]:
    """What became of each notebook, by its name."""
    results = root / "results.json"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "agg"}
    process = subprocess.run(
        [sys.executable, str(PROGRAM), str(root), TOY.stem, str(results)],
        env=os.environ | offline | {"PYTHONPATH": str(repository), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(process.stdout[-2000:])
    assert results.exists(), process.stderr[-4000:]
    return json.loads(results.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def became(tmp_path_factory, repository):
    return walk(make_root(tmp_path_factory.mktemp("full"), repository), repository)


@pytest.mark.parametrize("name", [info.name for info in STAGES])
def test_a_notebook_runs_to_its_end_with_the_full_recipe_at_toy_sizes(became, name):
    assert became.get(name, "not reached: an earlier notebook failed") == "ok"
