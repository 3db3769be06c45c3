"""A repository whose notebooks do next to nothing, for tests of the runner with real papermill and
real kernels.
"""

from pathlib import Path

import nbformat

from moxin_lab.stages import STAGES

FIRST, SECOND = STAGES[0], STAGES[1]
OPEN = "from moxin_lab import lab\nstage = lab.stage({name!r}, scale=scale, seed=seed, root=root)"
WRITE_DOCUMENTS = """folder = stage.output("documents")
folder.mkdir()
(folder / "text").write_text(f"documents {seed}")"""
WRITE_TOKENIZER = """text = (stage.input("documents") / "text").read_text()
stage.output("tokenizer").write_text("tokens of " + text)"""

ABOUT = (
    "topic: t, claim: text, source: s, tested_in: 01_data_curation, how: h, status: not attempted"
)
CLAIMS = f"""claims:
- {{id: known.claim, scale_needed: tiny, {ABOUT}}}
- {{id: large.claim, scale_needed: full, {ABOUT}}}
"""


def write_notebook(root: Path, name: str, *cells: str) -> None:
    parameters = nbformat.v4.new_code_cell(
        'scale = "tiny"\nseed = 0\nroot = "."', metadata={"tags": ["parameters"]}
    )
    code = [
        nbformat.v4.new_code_cell(cell)
        for cell in (OPEN.format(name=name), *cells, "stage.finish()")
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A stage"), parameters, *code]
    )
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


def make_root(root: Path) -> Path:
    """Fill an empty folder; the first two notebooks write their outputs."""
    for folder in ("notebooks", "moxin_lab", "papers"):
        (root / folder).mkdir(parents=True)
    for card in FIRST.data_cards:
        (root / "data_cards" / card / "data").mkdir(parents=True)
        (root / "data_cards" / card / "data" / "rows").write_text("rows")
    (root / "papers" / "claims.yml").write_text(CLAIMS)
    (root / "requirements.lock").write_text("one==1\n")
    (root / "moxin_lab" / "text").write_text(
        "the kernels import the installed package; here only its hash matters"
    )
    for info in STAGES:
        write_notebook(root, info.name)
    write_notebook(root, FIRST.name, WRITE_DOCUMENTS)
    write_notebook(root, SECOND.name, WRITE_TOKENIZER)
    return root
