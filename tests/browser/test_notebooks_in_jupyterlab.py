"""Every notebook opens in a running JupyterLab, and "Run All Cells" runs 03 and 10 to their end
without an error, as a person would.

The server works on a copy of the notebooks beside links to the rest of this repository, so nothing
of a run here is touched. The tokenizer is that of the run here, else the released one.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from moxin_lab.lab.artifacts import describe
from moxin_lab.lab.stage import RUNNER_VARIABLE
from moxin_lab.stages import STAGES
from tests.browser.chromium import NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM
TOKEN = "a-token-of-this-test"
NAMES = ["00_start_here", *(info.name for info in STAGES)]
OWN = ("notebooks", "runs", "reports", "site")
"""Folders of the repository that the copy has for itself."""
SECONDS = 900
"""Longest that a notebook may run here: several times what it takes on two busy cores."""


def write_root(root: Path, repository: Path) -> None:
    """A repository to work in: own notebooks and runs, links to all else."""
    for entry in repository.iterdir():
        if not entry.name.startswith(".") and entry.name not in OWN:
            (root / entry.name).symlink_to(entry)
    (root / "notebooks").mkdir()
    for path in (repository / "notebooks").glob("*.ipynb"):
        (root / "notebooks" / path.name).write_bytes(path.read_bytes())
    (root / "reports").mkdir()
    (root / "reports" / "released").symlink_to(repository / "reports" / "released")
    folder = root / "runs" / "tiny" / "02_tokenizer"
    folder.mkdir(parents=True)
    tokenizer = folder / "tokenizer"
    made = repository / "runs" / "tiny" / "02_tokenizer" / "tokenizer"  # by `make reproduce`
    released = repository / "reports" / "released" / "tokenizer-32k" / "tokenizer"
    tokenizer.symlink_to(made if made.is_dir() else released)
    record = {
        "stage": "02_tokenizer",
        "title": "The routed tokenizer",
        "scale": "tiny",
        "seed": 0,
        "key": None,
        "key_parts": None,
        "inputs": {},
        "outputs": {"tokenizer": describe(tokenizer)},
        "measures": [],
        "claims": [],
        "environment": {"python": "", "cpu": "", "packages": {}},
        "seconds": 0.0,
        "peak_memory_bytes": 0,
    }
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


class Lab:
    """A running server and the folder that it shows."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root

    def ask(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", method=method)
        request.add_header("Authorization", f"token {TOKEN}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def end_kernels(self) -> None:
        for kernel in json.loads(self.ask("api/kernels")):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, repository) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab")
    root, own = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("jupyter")
    write_root(root, repository)
    environment = {name: value for name, value in os.environ.items() if name != RUNNER_VARIABLE}
    environment |= {f"JUPYTER_{name}_DIR": str(own / name) for name in ("RUNTIME", "CONFIG")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": "0",
        "ServerApp.root_dir": str(root),
        "IdentityProvider.token": TOKEN,
        "LabApp.workspaces_dir": str(own / "workspaces"),
        "LabApp.user_settings_dir": str(own / "settings"),
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": "None",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    log = (own / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root)
    try:
        yield Lab(address_of(server, own), root)
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(30)
        server.kill()
        log.close()


def address_of(server: subprocess.Popen, own: Path) -> str:
    """The server's own word for where it listens, once it does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        for file in (own / "RUNTIME").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError, urllib.error.URLError, OSError):
                url = json.loads(file.read_text(encoding="utf-8"))["url"]
                urllib.request.urlopen(f"{url}api", timeout=5)
                return url
        time.sleep(0.2)
    raise AssertionError((own / "log").read_text(encoding="utf-8"))


@pytest.fixture
def opened(browser, lab):
    """Open a notebook in a browser of its own, and end its kernel afterwards."""
    contexts = []

    def open_notebook(name: str):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"{lab.url}lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-RenderedHTMLCommon h1")
        return page

    yield open_notebook
    for context in contexts:
        context.close()
    lab.end_kernels()


def cells_of(lab: Lab, name: str) -> list[dict]:
    text = (lab.root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    return json.loads(text)["cells"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_its_title_and_a_kernel(lab, opened, name):
    page = opened(name)
    title = "".join(cells_of(lab, name)[0]["source"]).split("\n")[0].removeprefix("# ")
    shown = page.locator(".jp-NotebookPanel .jp-RenderedHTMLCommon h1").first.text_content()
    assert shown.rstrip("¶") == title
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    assert page.locator(".jp-Dialog").count() == 0 and page.complaints == []


@pytest.mark.parametrize("name", ["03_model", "10_openness_report"])
def test_all_cells_of_a_notebook_run_without_an_error(lab, opened, name):
    page = opened(name)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("li[data-command='runmenu:run-all']").click()
    deadline, code = time.monotonic() + SECONDS, []
    while time.monotonic() < deadline:
        page.wait_for_timeout(2000)
        page.keyboard.press("Control+s")
        code = [cell for cell in cells_of(lab, name) if cell["cell_type"] == "code"]
        errors = [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]
        assert errors == [], [(error["ename"], error["evalue"]) for error in errors]
        if all(cell["execution_count"] for cell in code):
            break
    done = sum(bool(cell["execution_count"]) for cell in code)
    assert done == len(code), f"{done} of {len(code)} cells ran within {SECONDS} s"
    record = json.loads((lab.root / "runs/tiny" / name / "stage.json").read_text(encoding="utf-8"))
    assert record["stage"] == name and record["measures"] and record["claims"]
    assert page.locator(".jp-Dialog").count() == 0 and page.complaints == []
