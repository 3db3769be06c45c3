"""What the code of a stage can reach: the package files that it imports or starts, and the words in
them that name other things (claims, other scales).

    reached = closure(root, {"code cell 1": "from moxin_lab.model import decoder"})
    reached.files       # {"moxin_lab/model/decoder.py": SHA-256, ...}

A module is reached by an import statement, at the top of a file or inside a function, or by its
name in a string: `"from moxin_lab.verifier.worker import main"` for a subprocess, or `"worker.py"`
for a file in the same folder. All is read from syntax trees, so nothing is imported.

Guarantees: every file beside a reached module that is not Python (task files, catalogues) is
reached with it, whatever its suffix; docstrings reach nothing.
Out of scope: module names that are computed at run time. The package computes two: `bench.load`,
which no stage calls, and a reward's module:function, which `keys.py` reads from the settings.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from moxin_lab.lab.artifacts import LabError, is_working_state, sha256_file

PACKAGE = "moxin_lab"
COUNTED_AS_VALUES = ("moxin_lab.stages", "moxin_lab.scales", "moxin_lab.scales.sections")
"""Modules whose rows and settings enter a key as values: another stage's row or setting must not
make this stage run again.
"""
SECTIONS = "moxin_lab.scales.sections"
"""Of this one, the classes that a stage's code imports by name count, for it may build one of them
with default values.
"""
DECIDES_NO_RESULT = ("moxin_lab/lab/templates",)
"""Folders of files that are used after a stage has finished."""

_DOTTED = re.compile(rf"\b{PACKAGE}(?:\.[A-Za-z_]\w*)+")
_FROM = re.compile(rf"\bfrom\s+({PACKAGE}(?:\.\w+)*)\s+import\s+(\w+(?:\s*,\s*\w+)*)")


@dataclass(frozen=True)
class Closure:
    """What `closure` found."""

    files: dict[str, str]
    """SHA-256 by path relative to the root, sorted by path."""
    strings: frozenset[str]
    """Every string constant that is not a docstring."""
    scales: frozenset[tuple[str, str]]
    """(scale, section) for each `scales.load("full").model`; the section is empty where the code
    takes the whole scale.
    """


@dataclass(frozen=True)
class _Reading:
    """What one source text names."""

    modules: frozenset[str]
    strings: frozenset[str]
    scales: frozenset[tuple[str, str]]


def closure(root: Path, sources: Mapping[str, str]) -> Closure:
    """All that these sources reach in the package under `root`.

    sources: text by a name for error messages. Raises LabError for text that is not Python.
    """
    readings = [_read(text, where, PACKAGE) for where, text in sources.items()]
    waiting = {module for reading in readings for module in reading.modules}
    seen: set[str] = set()
    files: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting.update(_parents(module))
        if module.startswith(f"{SECTIONS}."):
            files.update(_definitions(root, module.rpartition(".")[2]))
        file = _module_file(root, module)
        if file is None or module in COUNTED_AS_VALUES:
            continue
        text = file.read_text(encoding="utf-8")
        name = file.relative_to(root).as_posix()
        files[name] = hashlib.sha256(text.encode()).hexdigest()
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        reading = _read(text, name, package)
        readings.append(reading)
        waiting |= reading.modules
        waiting |= {
            f"{package}.{beside[:-3]}"
            for beside in reading.strings
            if re.fullmatch(r"\w+\.py", beside) and (file.parent / beside).is_file()
        }
        files.update(_data_files(root, file.parent))
    return Closure(
        files=dict(sorted(files.items())),
        strings=frozenset().union(*(reading.strings for reading in readings)),
        scales=frozenset().union(*(reading.scales for reading in readings)),
    )


def _parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _module_file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _definitions(root: Path, name: str) -> dict[str, str]:
    """SHA-256 of a class of the sections' module with all that it uses there, as one entry."""
    file = _module_file(root, SECTIONS)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8")
    defined: dict[str, ast.stmt] = {}
    for statement in _parse(text, str(file)).body:
        for target in getattr(statement, "targets", [statement]):
            defined[getattr(target, "name", getattr(target, "id", ""))] = statement
    waiting, used = [name], set()
    while waiting:
        one = waiting.pop()
        if one in defined and one not in used:
            used.add(one)
            waiting += [n.id for n in ast.walk(defined[one]) if isinstance(n, ast.Name)]
    if name not in used:
        return {}
    code = "\n".join(ast.unparse(defined[one]) for one in sorted(used))
    entry = f"{file.relative_to(root).as_posix()}:{name}"
    return {entry: hashlib.sha256(code.encode()).hexdigest()}


def _data_files(root: Path, folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a module's folder that are not Python; none for the package's own
    top folder, where every subpackage lies.
    """
    if folder == root / PACKAGE:
        return {}
    hashes = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(root)
        working = any(is_working_state(part) for part in name.parts)
        unused = any(name.is_relative_to(other) for other in DECIDES_NO_RESULT)
        if file.suffix != ".py" and file.is_file() and not working and not unused:
            hashes[name.as_posix()] = sha256_file(file)
    return hashes


@lru_cache(maxsize=1024)
def _read(text: str, where: str, package: str) -> _Reading:
    """What a source text of `package` imports and names. Raises LabError if it is not Python."""
    nodes = list(ast.walk(_parse(text, where)))
    docstrings = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    strings = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    }
    modules = {name for node in nodes for name in _imports(node, package)}
    for string in strings:
        modules.update(_DOTTED.findall(string))
        for start, names in _FROM.findall(string):
            modules.update(f"{start}.{name.strip()}" for name in names.split(","))
    return _Reading(
        modules=frozenset(
            name for name in modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")
        ),
        strings=frozenset(strings),
        scales=frozenset(_scales(nodes)),
    )


def _parse(text: str, where: str) -> ast.Module:
    try:
        return ast.parse(_without_magics(text))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise LabError(f"{where} is not valid Python: {error}") from error


def _without_magics(text: str) -> str:
    """A code cell without IPython's own lines (`%matplotlib inline`), which import nothing."""
    return re.sub(r"^[ \t]*[%!].*$", "", text, flags=re.MULTILINE)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Modules of an import statement; `from a import b` may mean the module a.b, so both."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            above = package.split(".")
            above = above[: len(above) - node.level + 1]
            start = ".".join([*above, *filter(None, [start])])
        yield start
        yield from (f"{start}.{alias.name}" for alias in node.names)


def _scales(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """(scale, section) for each `scales.load("full").section` of a syntax tree."""
    sections = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="scales"), attr="load"),
                args=[ast.Constant(value=str(scale)), *_],
            ):
                yield scale, sections.get(id(node), "")
