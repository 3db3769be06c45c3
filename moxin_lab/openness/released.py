"""Faults of a published tree that hashes alone do not show. Each of them was found in somebody's
release: two steps with one checkpoint, a stage that nobody can go on with, a page of a commit or of
data that are not there, a page that names the machine that made it.

    problems(root, files, hashes)     # of the files that a manifest lists, by name

Guarantees: nothing is run, and no artifact is read again, for the manifest has its hashes; what
cannot be looked up (no git, a shallow clone) is said in `notes`, not passed over.
Out of scope: whether a checkpoint is any good; changed bytes (`verify.py`).
"""

import getpass
import hashlib
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, describe, is_working_state, read_json
from moxin_lab.untrusted import printable

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".distcp")
"""Endings of files with a model's numbers."""
TEXTS = (".html", ".json", ".ipynb", ".md", ".svg", ".css", ".csv", ".tsv", ".txt", ".yaml", ".yml")
MAX_TEXT_BYTES = 2**28
ORDERED = {"phase_checkpoints": "training_log/order.json"}
"""Artifact that a training leaves on its way -> file with the order of the data after it."""
COMMON_USERS = ("root", "user", "ubuntu", "debian", "runner", "admin", "nobody", "jovyan", "test")
"""Names that say nothing of a person."""
EXAMPLE_NAMES = r"(?:user|username|you|yourname|name|me|foo|example|jane|john|alice|bob)\b"
HOME = re.compile(
    rf"(?<![\w.~/-])/(?:home|Users)/(?!{EXAMPLE_NAMES})([A-Za-z][\w.-]*)(?=[/\"'<\s])"
)
NUMBER = re.compile(r"rank[_-]?\d+|\d+-of-\d+|\d+")
COMMIT = re.compile(r"\bcommits? ([0-9a-f]{12,40})\b|<dt>Commit</dt><dd>([0-9a-f]{12,40})")
DATA_ROW = re.compile(
    r'<th scope="row">([\w.-]+)</th><td>data card</td>.*?<td class="hash">([0-9a-f]{64})</td>'
)


@dataclass(frozen=True, order=True)
class Problem:
    """One file that is not as it should be. kind: a few words; detail: what, and of which other
    file.
    """

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.kind}: {self.path}" + (f" ({self.detail})" if self.detail else "")
        return printable(text)


def problems(
    root: Path | None, files: Mapping[str, Path], hashes: Mapping[str, str]
) -> tuple[list[Problem], list[str]]:
    """Faults among files, sorted, and notes on what could not be looked up.

    root: the repository around them, None for a report's folder alone. files: path by name relative
    to the root. hashes: SHA-256 of each name that a manifest binds.
    """
    notes: list[str] = []
    found = [
        *same_checkpoints(hashes),
        *incomplete_checkpoints(files, hashes),
        *broken_stages(files, hashes),
        *machine_names(root, files),
    ]
    pages = {name: path for name, path in files.items() if _is_page(name)}
    if root is not None:
        for faults, unseen in (unknown_data(root, pages), unknown_commits(root, pages)):
            found += faults
            notes += unseen
    return sorted(set(found)), notes


def same_checkpoints(hashes: Mapping[str, str]) -> Iterator[Problem]:
    """Weights with the same bytes whose names differ in a number alone: a step, a phase."""
    by_hash: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, digest in sorted(hashes.items()):
        if name.endswith(WEIGHTS):
            by_hash[(digest, NUMBER.sub(_without_step, name))].append(name)
    for first, *others in by_hash.values():
        for other in others:
            yield Problem(
                other,
                "two steps, one checkpoint",
                f"the same bytes as {first}: one of them is not the checkpoint that it is called",
            )


def incomplete_checkpoints(
    files: Mapping[str, Path], hashes: Mapping[str, str]
) -> Iterator[Problem]:
    """A folder of weights without config.json, or with an index of shards that are not all there,
    cannot be loaded, so nothing can go on from it.
    """
    names = set(files) | set(hashes)
    for folder in sorted({n.rpartition("/")[0] for n in names if n.endswith("/model.safetensors")}):
        if f"{folder}/config.json" not in names:
            yield Problem(folder, "cannot be resumed", "weights without config.json")
    for name in sorted(n for n in names if n.endswith(".safetensors.index.json")):
        folder = name.rpartition("/")[0]
        try:
            shards = sorted(set(read_json(files[name])["weight_map"].values()))
        except (KeyError, TypeError, AttributeError, LabError) as error:
            yield Problem(name, "cannot be resumed", f"an index without shards: {error}")
            continue
        for shard in shards:
            if f"{folder}/{shard}" not in names:
                yield Problem(name, "cannot be resumed", f"shard {shard} is missing")


def broken_stages(files: Mapping[str, Path], hashes: Mapping[str, str]) -> Iterator[Problem]:
    """Stages whose inputs, data, outputs or order of data are not those that their record names."""
    for name in sorted(n for n in files if n.endswith("/stage.json")):
        try:
            record = read_json(files[name])
        except LabError as error:
            yield Problem(name, "cannot be resumed", str(error))
            continue
        if isinstance(record, dict) and isinstance(record.get("outputs"), dict):
            yield from _stage_problems(name, record, hashes)


def _stage_problems(
    name: str, record: dict[str, Any], hashes: Mapping[str, str]
) -> Iterator[Problem]:
    folder = name.removesuffix("/stage.json")
    runs = folder.rpartition("/")[0]
    needed = [
        *((f"{runs}/{i.get('stage')}/{key}", "input", i) for key, i in _items(record, "inputs")),
        *((f"data_cards/{key}/data", "data card", i) for key, i in _items(record, "data_cards")),
        *((f"{folder}/{key}", "output", item) for key, item in _items(record, "outputs")),
    ]
    for path, kind, item in needed:
        actual = _bound_hash(path, hashes)
        if actual is None:
            yield Problem(name, "cannot be resumed", f"{kind} {path} is not there")
        elif actual != item.get("sha256"):
            yield Problem(
                name,
                "cannot be resumed",
                f"{kind} {path} has SHA-256 {actual[:12]}, the stage's record has "
                f"{str(item.get('sha256'))[:12]}",
            )
    for artifact, order in ORDERED.items():
        if artifact in record["outputs"] and f"{folder}/{order}" not in hashes:
            yield Problem(
                name, "cannot be resumed", f"{folder}/{order}, the data's order, is missing"
            )


def unknown_data(root: Path, pages: Mapping[str, Path]) -> tuple[list[Problem], list[str]]:
    """Pages that were made from data that neither the tree nor its history has, and why the history
    could not be looked up.
    """
    found, notes = [], []
    for name, path in sorted(pages.items()):
        for card, digest in DATA_ROW.findall(_text(path)):
            folder = root / "data_cards" / card / "data"
            actual = describe(folder)["sha256"] if folder.is_dir() else "none"
            if actual == digest:
                continue
            if why := _no_history(root):
                notes.append(f"{why}: data card {card} of {name} is of another version here")
            elif digest not in _data_of_history(root, f"data_cards/{card}/data"):
                detail = f"data card {card} with SHA-256 {digest[:12]}, the tree has {actual[:12]}"
                found.append(Problem(name, "data that is not in the tree", detail))
    return found, notes


@cache
def _data_of_history(root: Path, folder: str) -> frozenset[str]:
    """Hash of a folder, as `describe` computes it, at each commit that changed it."""
    commits = (_git(root, "log", "--format=%H", "--", folder) or "").split()
    found = set()
    for commit in commits:
        listing = (_git(root, "ls-tree", "-r", commit, "--", folder) or "").splitlines()
        blobs = {line.split("\t", 1)[1]: line.split()[2] for line in listing}
        hashes = {name: _blob_sha256(root, blob) for name, blob in blobs.items()}
        if (digest := _bound_hash(folder, hashes)) is not None:
            found.add(digest)
    return frozenset(found)


@cache
def _blob_sha256(root: Path, blob: str) -> str:
    command = ["git", "-C", str(root), "cat-file", "blob", blob]
    content = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return hashlib.sha256(content).hexdigest()


def unknown_commits(root: Path, pages: Mapping[str, Path]) -> tuple[list[Problem], list[str]]:
    """Pages that were made by a commit that the tree's history does not have, and why that could
    not be looked up.
    """
    named: dict[str, list[str]] = defaultdict(list)
    for name, path in sorted(pages.items()):
        for groups in COMMIT.findall(_text(path)):
            named["".join(groups)].append(name)
    if not named:
        return [], []
    if why := _no_history(root):
        return [], [f"{why}: commit {commit} of {names[0]}" for commit, names in named.items()]
    return [
        Problem(name, "commit that is not in the tree", commit)
        for commit, names in named.items()
        if _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None
        for name in dict.fromkeys(names)
    ], []


def _no_history(root: Path) -> str:
    """Why the history cannot be asked; empty if it can."""
    shallow = _git(root, "rev-parse", "--is-shallow-repository")
    return {None: "no git history", "true": "a shallow clone"}.get(shallow, "")


def machine_names(root: Path | None, files: Mapping[str, Path]) -> Iterator[Problem]:
    """Published texts that name a machine: this one's host, user or folders, or anyone's home."""
    here = _this_machine(root)
    for name, path in sorted(files.items()):
        if not name.startswith(("reports/", "runs/")) or not name.endswith(TEXTS):
            continue
        text = _text(path)
        for pattern, what in here:
            if found := pattern.search(text):
                yield Problem(name, "names a machine", f"{what}: {found[0]!r}")
        if found := HOME.search(text):
            yield Problem(name, "names a machine", f"a home folder: {found[0]!r}")


def _this_machine(root: Path | None) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of what only this machine has. A short or common name would be found in any text."""
    folders = {Path.home(): "the user's folder"}
    if root is not None:
        folders[root.resolve()] = "the folder of the clone"
    patterns = [
        (re.compile(rf"(?<![\w.~/-]){re.escape(str(folder))}/[\w.]"), what)
        for folder, what in folders.items()
        if len(folder.parts) > 2
    ]
    for word, what in ((socket.gethostname(), "the host"), (_user(), "the user")):
        distinct = len(word) > 5 or (len(word) > 3 and re.search(r"[\d-]", word))
        if distinct and word not in (*COMMON_USERS, "localhost"):
            patterns.append((re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])"), what))
    return patterns


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no entry
        return ""


def _bound_hash(path: str, hashes: Mapping[str, str]) -> str | None:
    """`artifacts.describe`'s hash of a file or folder, from the manifest's hashes."""
    if path in hashes:
        return hashes[path]
    inside = {
        name.removeprefix(f"{path}/"): digest
        for name, digest in hashes.items()
        if name.startswith(f"{path}/")
    }
    kept = {n: d for n, d in inside.items() if not any(map(is_working_state, n.split("/")))}
    if not kept:
        return None
    listing = "".join(f"{name} {kept[name]}\n" for name in sorted(kept))
    return hashlib.sha256(listing.encode()).hexdigest()


def _items(record: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    value = record.get(key)
    items = value.items() if isinstance(value, dict) else ()
    return [(name, item) for name, item in items if isinstance(item, dict)]


def _without_step(number: re.Match[str]) -> str:
    """Ranks and shards of one step may hold equal parts, so their numbers stay."""
    return "#" if number[0].isdigit() else number[0]


def _is_page(name: str) -> bool:
    return name.startswith("reports/") and name.endswith(".html")


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in the clone, None where it fails or there is none."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
