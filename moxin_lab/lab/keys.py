"""The key of a stage: everything that decides its result, hashed; and the words for what changed
between two keys.

Key = code cells + parameters + settings of the scale sections it reads + SHA-256 of its inputs and
data cards + source of every `moxin_lab` module that its code cells import, transitively + lock
file. Markdown cells, outputs and metadata do not count. The import closure is read from the syntax
tree, so computing a key imports nothing; an import built from a string at run time is not seen (the
package has none).
"""

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, describe, read_record, sha256_file, sha256_json
from moxin_lab.stages import STAGES, StageInfo, producer

PACKAGE = "moxin_lab"
# The rows and settings that a stage reads are in its key as values; another stage's row or field
# must not run it again.
VALUES_COUNT_INSTEAD = ("moxin_lab.stages", "moxin_lab.scales", "moxin_lab.scales.sections")


def code_cells(notebook: Path) -> list[str]:
    """Sources of the code cells. Raises LabError for a missing or broken notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise LabError(
            f"{notebook} is missing: restore it (git checkout -- notebooks/{notebook.name})"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise LabError(f"{notebook} is not a notebook: {error}") from error
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _module_file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported_modules(source: str) -> set[str]:
    """Names of package modules in import statements; `from a import b` may mean the module a.b, so
    both are listed.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name == PACKAGE or name.startswith(PACKAGE + ".")}


def source_closure(root: Path, sources: list[str]) -> dict[str, str]:
    """SHA-256 by path of every package file that these sources import, directly or through other
    package modules.

    Data files lying beside an imported module of a stage package (YAML tasks, catalogues) count
    too.
    """
    waiting = set().union(*(_imported_modules(source) for source in sources)) if sources else set()
    seen: set[str] = set()
    hashes: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        parts = module.split(".")
        waiting.update(".".join(parts[:n]) for n in range(1, len(parts)))
        file = _module_file(root, module)
        if file is None or module in VALUES_COUNT_INSTEAD:
            continue
        text = file.read_text(encoding="utf-8")
        hashes[file.relative_to(root).as_posix()] = hashlib.sha256(text.encode()).hexdigest()
        waiting |= _imported_modules(text) - seen
        folder = file.parent
        if folder.name not in (PACKAGE, "lab"):
            for data in sorted(folder.rglob("*")):
                if data.is_file() and data.suffix in (".yaml", ".yml", ".json", ".csv", ".jinja"):
                    hashes[data.relative_to(root).as_posix()] = sha256_file(data)
    return dict(sorted(hashes.items()))


def key_parts(
    root: Path, info: StageInfo, scale: Any, parameters: dict[str, Any]
) -> dict[str, Any]:
    """The parts of a stage's key as JSON values; an input that does not exist yet has the hash
    None. What it may take counts,
    asked for or not: which it will ask for is known only when it runs.

    `scale` is a `moxin_lab.scales.Scale`; `parameters` are the notebook's, without `root`.
    """
    cells = code_cells(root / "notebooks" / f"{info.name}.ipynb")
    lock = root / "requirements.lock"
    parts: dict[str, Any] = {
        "code cells": sha256_json(cells),
        "parameters": parameters,
        "settings": {name: getattr(scale, name).model_dump(mode="json") for name in info.sections},
        "inputs": {name: _artifact_hash(root, scale.name, name) for name in info.inputs},
        "data cards": {
            name: _folder_hash(root / "data_cards" / name / "data") for name in info.data_cards
        },
        "files": {name: _folder_hash(root / name) for name in info.reads},
        "source": source_closure(root, cells),
        "lock file": sha256_file(lock) if lock.exists() else None,
    }
    if info.reads_records:
        earlier = STAGES[: STAGES.index(info)]
        parts["records"] = {
            other.name: sha256_json(read_record(root, scale.name, other.name)) for other in earlier
        }
    return parts


def _artifact_hash(root: Path, scale: str, artifact: str) -> str | None:
    record = read_record(root, scale, producer(artifact).name)
    return record["outputs"][artifact]["sha256"] if record else None


def _folder_hash(path: Path) -> str | None:
    return describe(path)["sha256"] if path.exists() else None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed between two sets of key parts, one short phrase each: `parameters: seed 0 -> 1`,
    `source: moxin_lab/x.py`.
    """
    found = []
    for part in sorted(old.keys() | new.keys()):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            names = [
                name
                for name in sorted(before.keys() | after.keys())
                if before.get(name) != after.get(name)
            ]
            if part == "parameters":
                found += [
                    f"parameter {name}: {before.get(name)!r} -> {after.get(name)!r}"
                    for name in names
                ]
            else:
                found.append(
                    f"{part}: {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"
                )
        else:
            found.append(part)
    return found
