"""`moxin-lab mof`, `summary` and `release check`: what they print, and their exit codes.

Guarantees: 1 if a component's evidence does not hold, or a release differs from its release.json.
Out of scope: building a release, which needs models (`cli.py` joins the two).
"""

from pathlib import Path

from moxin_lab.lab.artifacts import LabError, write_json
from moxin_lab.openness import mof, mof_evidence, release, summary
from moxin_lab.openness.mof_entry import component_lines
from moxin_lab.untrusted import printable


def evaluate_mof(path: Path) -> int:
    """Print what an entry is worth as it stands and, where a sidecar has evidence, by the evidence
    that holds.
    """
    entry = mof.load(path)
    print(f"{path}, as it lists its components:")
    print(mof.format_text(mof.evaluate_entry(entry), component_lines(path)))
    sidecar = mof_evidence.sidecar(path)
    if not sidecar.exists():
        print(f"\nNo evidence was checked: {sidecar.name} is not beside it.")
        return 0
    checked = mof_evidence.check_all(path)
    by_evidence = mof_evidence.with_evidence(entry, checked)
    print(f"\nWith the evidence in {sidecar.name}: {by_evidence.class_name}")
    for name, reason in mof_evidence.unsupported(entry, checked).items():
        print(f"  does not count: {name}: {printable(reason)}")
    print("\n".join(mof.next_steps(by_evidence)))
    return 1 if any(item.problems for item in checked.values()) else 0


def record_evidence(path: Path) -> int:
    """Write the present hashes into the evidence of an entry."""
    changed = mof_evidence.record(path)
    print(f"{mof_evidence.sidecar(path)}: {len(changed)} hash(es) written")
    for name in changed:
        print(f"  {name}")
    return 0


def grade_summary(path: Path, root: Path) -> int:
    """Write JSON and grade of a public summary beside its file, and print the grade. Those of a
    release, `release build` writes; they are only graded here.
    """
    whole, graded = summary.grade_file(path, root)
    if not whole.get("about"):
        public = {name: whole[name] for name in ("model", "document", "fields")}
        write_json(path.with_suffix(".json"), public)
        write_json(path.with_name(f"{path.stem}_grade.json"), graded.as_dict())
    print(f"{graded.model}, by {len(graded.metrics)} metrics:")
    print(f"  {'':<26} {'transparency':>16} {'usefulness':>16}")
    rows = [(name, name) for name in summary.sections()]
    for name, section in [*rows, ("all", None)]:
        pair = summary.pair(graded, section)
        print(f"  {name:<26} {_words(pair[0]):>16} {_words(pair[1]):>16}")
    for metric in graded.metrics:
        if metric.score is not None and metric.score < 1:
            print(f"  {metric.id} {metric.score:g} of 1, weight {metric.weight}: {metric.reason}")
    return 0


def check_release(folder: Path) -> int:
    """Compare a release's folder with its release.json, and its archive where it is there."""
    if not folder.is_dir():
        raise LabError(f"{folder} is no folder; give a folder of release/")
    problems = release.check(folder)
    for problem in problems:
        print(problem)
    print(f"{folder}: " + (f"{len(problems)} problem(s)" if problems else "as release.json says"))
    return 1 if problems else 0


def _words(grade: summary.Grade) -> str:
    return grade.letter if grade.percent is None else f"{grade.letter} {grade.percent:.2f} %"
