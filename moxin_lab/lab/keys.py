"""The key of a stage: everything that decides its result, hashed; and the words for what changed
between two keys.

What is in it, by the part's name in `stage.json`:

    code cells                 of the notebook; Markdown, outputs and metadata do not count
    parameters                 scale and seed
    settings                   the sections of the scale file that the stage's row lists, and the
                               scale of the package whose claims it may decide
    settings of other scales   what its code reads with `scales.load("full").model`
    named in settings          files under the root that a setting names by path, and modules that
                               one names as module:function
    inputs                     SHA-256 of earlier stages' artifacts
    data cards, files          SHA-256 of what the row lists
    corpus                     what the last build of the corpus names, where a setting names it
    claims                     value, tolerance and needed scale of claims that it tests or names
    source                     SHA-256 of the package files that its code reaches (closure.py)
    lock file                  SHA-256 of requirements.lock
    installed versions         Python's, and those of packages that are not installed as locked
    records                    of all earlier stages, where the row says that it reads them

Guarantees: computing a key imports nothing of a stage and runs nothing.
Out of scope: the machine. Processor, GPU, number of threads and the environment variables that
libraries read can change the last digits of a result; `stage.json` records the machine instead.
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from moxin_lab import scales
from moxin_lab.lab import claims
from moxin_lab.lab.artifacts import (
    MAX_NOTEBOOK_BYTES,
    LabError,
    describe,
    is_working_state,
    read_json,
    read_record,
    read_text,
    sha256_file,
    sha256_json,
)
from moxin_lab.lab.cache import CORPUS, corpus_hash
from moxin_lab.lab.closure import closure
from moxin_lab.stages import STAGES, StageInfo, producer

PATH_FIELDS = ("path", "file", "folder")
"""Settings whose value is a path even where it is a single word."""
HASHED_BYTES = 16 * 2**20
"""Largest file or folder named in settings whose content is hashed at each look; our choice."""


def code_cells(notebook: Path) -> list[str]:
    """Sources of the code cells. Raises LabError for a missing or broken notebook."""
    if not notebook.exists():
        raise LabError(
            f"{notebook} is missing: restore it (git checkout -- notebooks/{notebook.name})"
        )
    content = read_json(notebook, max_bytes=MAX_NOTEBOOK_BYTES)
    try:
        return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    except (KeyError, TypeError) as error:
        raise LabError(f"{notebook} is not a notebook: {error!r}") from error


def key_parts(
    root: Path, info: StageInfo, scale: scales.Scale, parameters: dict[str, Any]
) -> dict[str, Any]:
    """The parts of a stage's key as JSON values.

    An input that does not exist yet has the hash None. Artifacts that the stage may take count
    whether it takes them or not: which ones it takes is known only when it runs.

    parameters: the notebook's, without `root`.
    """
    notebook = root / "notebooks" / f"{info.name}.ipynb"
    cells = code_cells(notebook)
    settings = {name: getattr(scale, name).model_dump(mode="json") for name in info.sections}
    files = _files_named(root, settings)
    sources = {f"{notebook}, code cell {i}": text for i, text in enumerate(cells, start=1)}
    sources |= {str(path): read_text(path) for path in files.values() if path.suffix == ".py"}
    reached = closure(root, sources)
    parts: dict[str, Any] = {
        "code cells": sha256_json(cells),
        "parameters": parameters,
        "settings": {"decides_as": scale.decides_as, **settings},
        "settings of other scales": _settings_of_other_scales(root, reached.scales),
        "named in settings": {
            **{name: _fingerprint(path) for name, path in files.items()},
            **_modules_named(settings),
        },
        "inputs": {name: _artifact_hash(root, scale.name, name) for name in info.inputs},
        "data cards": {
            name: _folder_hash(root / "data_cards" / name / "data") for name in info.data_cards
        },
        "files": {name: _folder_hash(root / name) for name in info.reads},
        "corpus": corpus_hash() if CORPUS in {text for _, text in _strings(settings)} else None,
        "claims": claims.deciding_values(root, info.name, reached.strings),
        "source": reached.files,
        "lock file": _lock_hash(root),
        "installed versions": _installed_versions(root / "requirements.lock", _lock_hash(root)),
    }
    if info.reads_records:
        earlier = STAGES[: STAGES.index(info)]
        parts["records"] = {
            other.name: sha256_json(read_record(root, scale.name, other.name)) for other in earlier
        }
    return parts


def _settings_of_other_scales(root: Path, named: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """Settings by `scale.section`, or by `scale` where the code takes the whole scale."""
    found = {}
    for name, section in sorted(named):
        other = scales.load(name, root)
        values = getattr(other, section) if section in type(other).model_fields else other
        found[f"{name}.{section}".rstrip(".")] = values.model_dump(mode="json")
    return found


def _strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(field, string) for every string in settings; items of a list have the list's field, those of
    a mapping `paths` the field `path`.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, "path" if field == "paths" else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, field)
    elif isinstance(value, str):
        yield field, value


def _files_named(root: Path, settings: dict[str, Any]) -> dict[str, Path]:
    """Files and folders under the root that a setting names: corpora, rewards, tasks, towers."""
    return {
        text: root / text
        for field, text in _strings(settings)
        if (field in PATH_FIELDS or re.search(r"\w[/.]\w", text)) and (root / text).exists()
    }


def _fingerprint(path: Path) -> str:
    """SHA-256 of the content, or of each file's size and time of change where a corpus, a
    checkpoint or an image set is too large to be read at each look.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [f for f in files if not any(map(is_working_state, f.relative_to(path).parts))]
    facts = [(file, file.stat()) for file in files if file.is_file()]
    if facts and sum(fact.st_size for _, fact in facts) <= HASHED_BYTES:
        return describe(path)["sha256"]
    return sha256_json([[str(f.relative_to(path)), s.st_size, s.st_mtime_ns] for f, s in facts])


def _modules_named(settings: dict[str, Any]) -> dict[str, str | None]:
    """SHA-256 of the file of each `module:function` in settings; None where there is no module."""
    named = {}
    for _, text in _strings(settings):
        if match := re.fullmatch(r"([A-Za-z_]\w*)((?:\.\w+)*):[A-Za-z_]\w*", text):
            top, rest = match.groups()
            spec = importlib.util.find_spec(top)  # of a top module: imports nothing
            file = Path(spec.origin) if spec is not None and spec.origin else None
            if file is not None and rest:
                base = file.parent.joinpath(*rest[1:].split("."))
                file = next(
                    filter(Path.is_file, (base.with_suffix(".py"), base / "__init__.py")), None
                )
            named[text] = sha256_file(file) if file is not None and file.is_file() else None
    return named


def _artifact_hash(root: Path, scale: str, artifact: str) -> str | None:
    record = read_record(root, scale, producer(artifact).name)
    return record["outputs"].get(artifact, {}).get("sha256") if record else None


def _folder_hash(path: Path) -> str | None:
    return describe(path)["sha256"] if path.exists() else None


def _lock_hash(root: Path) -> str | None:
    lock = root / "requirements.lock"
    return sha256_file(lock) if lock.exists() else None


@lru_cache(maxsize=8)
def _installed_versions(lock: Path, sha256: str | None) -> dict[str, str]:
    """Python's version (two digits) and each package installed in another version than the lock
    names; sha256 is the lock's, so that an edited lock is read again.
    """
    found = {"python": ".".join(python_version_tuple()[:2])}
    if sha256 is None:
        return found
    locked: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text("utf-8"), re.MULTILINE
    ):
        locked.setdefault(name, set()).add(version)
    for name, versions in sorted(locked.items()):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if installed not in versions:
            found[name] = installed
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed between two sets of key parts, one short phrase per part: `parameter seed: 0 ->
    1`, `source: moxin_lab/x.py`.
    """
    changes = []
    for part in sorted(old.keys() | new.keys()):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if not (isinstance(before, dict) and isinstance(after, dict)):
            changes.append(part)
            continue
        names = [
            name
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
        if part == "parameters":
            changes += [
                f"parameter {name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names
            ]
        else:
            changes.append(f"{part}: {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}")
    return changes
