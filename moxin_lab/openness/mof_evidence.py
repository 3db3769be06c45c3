"""The evidence behind a `MOF.yml`: `<name>.evidence.yml` says of each component where it lies, with
which SHA-256 and licence text; a component whose evidence does not hold does not count.

    checked = check_all(Path("MOF.yml"))
    with_evidence(entry, checked).class_name       # the class that the files support

    # evidence:
    #   Model card:
    #     status: present                   present | partial | absent | link only | not found
    #     files:
    #     - {path: release/moxin-lab-small/README.md, sha256: 8d1c...}
    #     licence: {path: LICENSES/CC-BY-4.0.txt, sha256: 9f2a...}
    #     notebook: 04_pretraining
    #     note: What it is.
    #
    # commit: 2d9484f...   a file with `at: commit` has its SHA-256 there, whatever came later; what
#                      is published elsewhere has an `address` instead of files

Rule: `present` counts if every file and the licence's text have the stated SHA-256 and the notebook
exists; an address alone cannot be checked and does not count. `partial` and `link only` do not
count: something is published, but not the component. The SHA-256 of a folder is that of
`lab.artifacts.describe`. Paths count from the folder of the evidence.

Guarantees: no path leads out of that folder; what is wrong is said by component and path.
Out of scope: licences and classes (`mof.py`); what upstream's own pages hold, which the notes of
`papers/moxin_mof.evidence.yml` say.
"""

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, describe, is_working_state, write_atomically
from moxin_lab.openness import mof
from moxin_lab.openness.mof_entry import (
    MAX_NAME_LETTERS,
    MAX_PROBLEMS,
    MofError,
    lines_of,
    name_problems,
    quoted,
    read,
)

STATUSES = ("present", "partial", "absent", "link only", "not found")
"""`not found`: looked for in public snapshots, no trace."""


@dataclass(frozen=True)
class Checked:
    """One component's evidence, and what is wrong with it."""

    name: str
    status: str
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the component counts, as far as evidence goes."""
        return self.status == "present" and not self.problems


def sidecar(entry_file: str | Path) -> Path:
    """Where the evidence of an entry is looked for."""
    return Path(entry_file).with_suffix(".evidence.yml")


def evidence(entry_file: str | Path) -> dict[str, dict[str, Any]]:
    """Component name -> its evidence. Raises MofError, with lines, if the sidecar is missing, is
    not such a mapping or names an unknown component or status.
    """
    return _content(sidecar(entry_file))["evidence"]


def check_all(entry_file: str | Path) -> dict[str, Checked]:
    """Every component's evidence, checked against the files. Raises MofError as `evidence` does."""
    path = sidecar(entry_file)
    content = _content(path)
    commit = content.get("commit")
    return {
        name: Checked(name, item["status"], tuple(_problems(item, path.resolve().parent, commit)))
        for name, item in content["evidence"].items()
    }


def with_evidence(entry: dict[str, Any], checked: Mapping[str, Checked]) -> mof.Evaluation:
    """The evaluation of the components whose evidence holds."""
    release = entry["release"]
    kept = [item for item in release["components"] if _holds(checked, item["name"])]
    return mof.evaluate_entry({**entry, "release": {**release, "components": kept}})


def unsupported(entry: dict[str, Any], checked: Mapping[str, Checked]) -> dict[str, str]:
    """The listed components that do not count for want of evidence, and why."""
    reasons = {}
    for component in entry["release"]["components"]:
        name = component["name"]
        if not _holds(checked, name):
            item = checked.get(name)
            reasons[name] = (
                "no evidence is given"
                if item is None
                else "; ".join(item.problems) or f"its evidence says {item.status!r}"
            )
    return reasons


def record(entry_file: Path) -> list[str]:
    """Write the present SHA-256 of every file that the evidence names into it; what changed.

    Lines are kept as they are but for the digits. Raises MofError as `evidence` does, and for a
    path that does not exist.
    """
    path = sidecar(entry_file)
    root, content = path.resolve().parent, _content(path)
    text, changed = path.read_text(encoding="utf-8"), []
    named = {
        file["path"]: file.get("at") == "commit" and content.get("commit")
        for item in content["evidence"].values()
        for file in _files(item)
    }
    for name, commit in named.items():
        digest = _sha256(root, name, commit or None)
        pattern = rf"(path: {re.escape(name)}, sha256: )([0-9a-f]{{64}})"
        new = re.sub(pattern, rf"\g<1>{digest}", text)
        if new != text:
            changed.append(name)
        text = new
    write_atomically(path, text)
    return changed


def _holds(checked: Mapping[str, Checked], name: str) -> bool:
    return name in checked and checked[name].holds


def _problems(item: Mapping[str, Any], root: Path, commit: str | None) -> list[str]:
    if item["status"] != "present":
        return []
    if not item.get("files"):
        address = item.get("address")
        return [f"{address} is named without a SHA-256" if address else "it names no file"]
    found = [] if item.get("licence") else ["it names no licence text"]
    for file in _files(item):
        try:
            found += _file_problem(file, root, commit)
        except LabError as error:
            found.append(str(error))
    notebook = item.get("notebook")
    if notebook and str(notebook) not in _notebooks(root):
        found.append(f"there is no notebook {str(notebook)[:MAX_NAME_LETTERS]}")
    return found


def _notebooks(root: Path) -> set[str]:
    return {path.stem for path in (root / "notebooks").glob("*.ipynb")}


def _files(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(item.get("files") or []), *([item["licence"]] if item.get("licence") else [])]


def _file_problem(file: Mapping[str, Any], root: Path, commit: str | None) -> list[str]:
    if file.get("at") != "commit":
        found, where = _sha256(root, file["path"]), ""
    elif commit is None:
        return [f"{file['path']} is said to lie at a commit, but the evidence names none"]
    elif _is_as_then(root, file):
        return []
    else:
        found, where = _sha256(root, file["path"], commit), f" at commit {commit[:12]}"
    if found == file["sha256"]:
        return []
    return [f"{file['path']}{where} has SHA-256 {found[:12]}, not {file['sha256'][:12]}"]


def _is_as_then(root: Path, file: Mapping[str, Any]) -> bool:
    """Whether the tree still has what the commit had, so that no history is needed."""
    try:
        return _sha256(root, file["path"]) == file["sha256"]
    except LabError:
        return False


def _sha256(root: Path, name: str, commit: str | None = None) -> str:
    """Of a file or folder of the tree, or of a commit. Raises LabError."""
    path, said = root / name, name[:MAX_NAME_LETTERS]
    try:
        inside = not Path(name).is_absolute() and all(
            each.resolve().is_relative_to(root) for each in (path, *_links_in(path))
        )
        if inside and commit is None:
            return str(describe(path)["sha256"])
    except (LabError, FileNotFoundError):
        raise LabError(f"{said} does not exist") from None
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise LabError(f"{said} cannot be read: {str(error)[:MAX_NAME_LETTERS]}") from None
    if not inside:
        raise LabError(f"{said} leads out of the folder of the evidence")
    return _sha256_at_commit(root, name, str(commit))


def _links_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.rglob("*") if path.is_symlink())


@cache
def _sha256_at_commit(root: Path, name: str, commit: str) -> str:
    """As `describe` would say in a checkout of the commit. Raises LabError without git, history or
    such a path.
    """
    command = ["git", "-C", str(root), "archive", "--format=tar", commit, "--", name]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        raise LabError(
            f"{name} cannot be read at commit {commit[:12]}: {said[-1] if said else error}; a full "
            "clone with git has it"
        ) from None
    digests = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            inside = Path(member.name).relative_to(name).as_posix() if member.isfile() else ""
            counts = inside and not any(is_working_state(part) for part in Path(inside).parts)
            if counts and (content := archive.extractfile(member)) is not None:
                digests[inside] = hashlib.sha256(content.read()).hexdigest()
    if "." in digests:  # the path is a file
        return digests["."]
    listing = "".join(f"{inside} {digests[inside]}\n" for inside in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    """The whole sidecar, checked in its form. Raises MofError."""
    if not path.exists():
        raise MofError(f"{path} does not exist; it has the evidence of each component")
    content = read(path)
    components = content.get("evidence") if isinstance(content, dict) else None
    if not isinstance(components, dict):
        raise MofError(f"{path} cannot be read as evidence: it has no mapping `evidence`")
    names = list(components)
    problems = [(names[at], text) for at, text in name_problems(list(map(str, components)))]
    problems += islice(
        ((name, text) for name, item in components.items() for text in _malformed(name, item)),
        MAX_PROBLEMS,
    )
    commit = content.get("commit", "0" * 40)
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise MofError(f"{path}: `commit` is not the 40 digits of a commit")
    if problems:
        lines = lines_of(path, [("evidence", str(name)) for name, _ in problems])
        raise MofError(
            f"{path}:\n"
            + "\n".join(
                f"  - line {line}, {text}" for line, (_, text) in zip(lines, problems, strict=True)
            )
        )
    return content


def _malformed(name: Any, item: Any) -> list[str]:
    who = f"component {quoted(name)}"
    if not isinstance(item, dict) or not isinstance(item.get("status"), str):
        return [f"{who} has no mapping with a text `status`"]
    if item["status"] not in STATUSES:
        return [f"{who}: `status` is {quoted(item['status'])}; it is one of {', '.join(STATUSES)}"]
    if not isinstance(item.get("files") or [], list):
        return [f"{who}: `files` is not a list"]
    if not all(_is_file(file) for file in _files(item)):
        return [f"{who}: each file and `licence` need a `path` and a `sha256` of 64 digits"]
    return []


def _is_file(file: Any) -> bool:
    return (
        isinstance(file, dict)
        and isinstance(file.get("path"), str)
        and isinstance(file.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", file["sha256"]) is not None
        and file.get("at") in (None, "commit")
    )
