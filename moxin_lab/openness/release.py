"""A model's release, made from the finished run that trained it: `release/<scale>/`.

    build(root, "moxin-lab-small", tools, progress=print)    # the folder; see WRITTEN below
    check(root / "release" / "moxin-lab-small")              # what differs from its release.json

    release/moxin-lab-small/
      README.md                   model card
      technical_report.md .html   architecture, data, training, evaluation, limits
      public_summary.json .html   training content (EU AI Act, article 53(1)(d)), and its grade
      model/                      final weights in bfloat16, configuration, tokenizer
      checkpoints/phase_1, _2/    weights at the end of the other phases
      training/                   log of every step, order of the data, settings, stage records
      evaluation/                 scores of the released bytes, measures of stage 08, sample outputs
      release.json                every file with its SHA-256, the commit, and the archive
    release/moxin-lab-small.tar.gz    not in git: float32 weights, training text, answers per item

Guarantees: refuses a run that is unfinished, whose stages took other artifacts than the present
ones, or that was made from files that no commit has; the same run gives the same bytes; weights
that are too large for a clone go to the archive alone, and release.json says so; nothing half-made
is left under the release's name.
Out of scope: running stages (`lab.runner`); how weights are rounded, scored and sampled, which
`tools` do (`evaluation.released`); whether the release is open (`mof_evidence.py`).
"""

import gzip
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from moxin_lab import scales
from moxin_lab.lab import curated, summary_page
from moxin_lab.lab.artifacts import (
    LabError,
    describe,
    read_json,
    read_record,
    sha256_file,
    stage_folder,
    write_atomically,
    write_json,
)
from moxin_lab.openness import release_texts, summary
from moxin_lab.openness.summary_document import PAGE
from moxin_lab.openness.summary_sheet import MANIFEST

VERSION = "1.0"
STAGES = {
    "01_data_curation": ("documents",),
    "02_tokenizer": ("tokenizer",),
    "03_model": ("architecture",),
    "04_pretraining": ("pretrained", "phase_checkpoints", "training_log"),
    "08_benchmarks": ("evaluation_results",),
}
"""What a release is made of: stages, and the artifacts of each."""
OPTIONAL = ("08_benchmarks",)
"""Of a run without it, the scores of the released weights are all results, and the texts say so."""
MAX_TREE_BYTES = 3_000_000
"""Most bytes of a release in the tree; with weights beyond it, they go to the archive alone."""
GRADE = "public_summary_grade.json"
RECORDED = ("stage", "key", "seconds", "peak_memory_bytes", "inputs", "outputs", "environment")


class Tools(Protocol):
    """What knows models: `moxin_lab.evaluation.released`."""

    def store(self, source: Path, target: Path) -> None: ...

    def scores(
        self,
        checkpoints: Mapping[str, Path],
        documents: Path,
        tokenizer_folder: Path,
        settings: Any,
        *,
        seed: int,
    ) -> pd.DataFrame: ...

    def continuations(
        self, checkpoint: Path, documents: Path, languages: list[str]
    ) -> pd.DataFrame: ...


def build(
    root: Path,
    scale_name: str,
    tools: Tools,
    *,
    runs: Path | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Assemble `release/<scale>/` and its archive from the run at a scale; the folder.

    runs: another clone of this repository that holds `runs/<scale>/` (default: `root`). Raises
    LabError for a run that is not fit for release, and for texts that lack something.
    """
    scale = scales.load(scale_name, root)
    records = _records(runs or root, scale.name)
    made = (runs or root) / "runs" / scale.name
    (root / "release").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=root / "release") as work:
        new = Path(work) / scale.name
        new.mkdir()
        progress("weights in bfloat16")
        checkpoints = _store(made, new, tools)
        progress("scores of the released weights")
        evaluated = {f"released, {Path(name).name}": new / name for name in checkpoints}
        evaluated["float32, model"] = checkpoints["model"]
        documents, seed = made / "01_data_curation" / "documents", records["04_pretraining"]["seed"]
        scored = tools.scores(evaluated, documents, new / "model", scale.evaluation, seed=seed)
        languages = list(scale.evaluation.languages)
        samples = tools.continuations(new / "model", documents, languages)
        progress("log, measures, archive, texts")
        _write_data(made, new, scale, records, scored, samples)
        manifest = _manifest(root, scale, records, documents)
        archive = Path(work) / f"{scale.name}.tar.gz"
        manifest["archive"] = _archive(archive, made, checkpoints, new, records)
        _make_small(new, checkpoints)
        facts = release_texts.facts(root, new, manifest, scale, records, scored, samples)
        release_texts.write(new, facts)
        write_json(new / MANIFEST, {**manifest, "files": _files(new)})
        _write_summary(root, new)
        write_json(new / MANIFEST, {**manifest, "files": _files(new)})
        out = root / "release" / scale.name
        archive.replace(out.with_name(archive.name))
        if out.exists():
            shutil.rmtree(out)
        new.replace(out)
    return out


def check(folder: Path) -> list[str]:
    """What in a release's folder differs from its release.json, and whether the archive beside it,
    if there is one, is another; empty: nothing. Raises LabError if that file cannot be read.
    """
    manifest = read_json(folder / MANIFEST)
    recorded, present = manifest["files"], _files(folder)
    archive = folder.parent / manifest["archive"]["name"]
    other = archive.exists() and sha256_file(archive) != manifest["archive"]["sha256"]
    return sorted(
        [f"changed: {archive.name} beside it"] * other
        + [f"missing: {name}" for name in recorded.keys() - present.keys()]
        + [f"surplus: {name}" for name in present.keys() - recorded.keys()]
        + [
            f"changed: {name}"
            for name in recorded.keys() & present.keys()
            if recorded[name] != present[name]
        ]
    )


def summary_file(root: Path, name: str) -> Path:
    """Where the words of a public summary are."""
    return root / "papers" / "summaries" / f"{name}.yml"


def _store(made: Path, new: Path, tools: Tools) -> dict[str, Path]:
    """Write the weights and the tokenizer; the float32 folder that each was made of."""
    trained = made / "04_pretraining"
    checkpoints = {"model": trained / "pretrained"}
    for folder in sorted((trained / "phase_checkpoints").iterdir()):
        checkpoints[f"checkpoints/{folder.name}"] = folder
    for name, folder in checkpoints.items():
        tools.store(folder, new / name)
    for file in sorted((made / "02_tokenizer" / "tokenizer").iterdir()):
        shutil.copyfile(file, new / "model" / file.name)
    return checkpoints


def _write_data(
    made: Path,
    new: Path,
    scale: scales.Scale,
    records: Mapping[str, Mapping[str, Any]],
    scored: pd.DataFrame,
    samples: pd.DataFrame,
) -> None:
    """training/ and evaluation/."""
    training, evaluation = new / "training", new / "evaluation"
    shutil.copytree(made / "04_pretraining" / "training_log", training)
    documents = made / "01_data_curation" / "documents"
    shutil.copyfile(documents / "run.json", training / "curation.json")
    shutil.copyfile(documents / "funnel.json", training / "funnel.json")
    write_json(training / "settings.json", scale.model_dump(mode="json"))
    parts = [{name: record[name] for name in RECORDED} for record in records.values()]
    write_json(training / "stages.json", parts)
    write_json(evaluation / "bits_per_byte.json", scored.to_dict(orient="records"))
    if "08_benchmarks" in records:
        write_json(evaluation / "measures.json", records["08_benchmarks"]["measures"])
    write_json(evaluation / "sample_outputs.json", samples.to_dict(orient="records"))


def _manifest(
    root: Path, scale: scales.Scale, records: Mapping[str, Mapping[str, Any]], documents: Path
) -> dict[str, Any]:
    """release.json without its lists of files."""
    commits = {name: record["environment"]["git_commit"] for name, record in records.items()}
    return {
        "name": scale.name,
        "version": VERSION,
        "date": max(_date_of(root, commit) for commit in set(commits.values())),
        "scale": scale.name,
        "decides_as": scale.decides_as,
        "commit": commits["04_pretraining"],
        "commits": commits,
        "seed": records["04_pretraining"]["seed"],
        "parameters": _measure(records["04_pretraining"], "parameters"),
        "tokens_read": _measure(records["04_pretraining"], "training_tokens"),
        "weights": "bfloat16",
        "training_text": _training_text(documents),
    }


def _write_summary(root: Path, new: Path) -> None:
    """The public summary beside the model, as page and JSON, and its grade."""
    path = summary_file(root, new.name)
    if not path.exists():
        raise LabError(f"{path} does not exist; it has what no record says of the training content")
    content = {**summary.load(path), "about": new.relative_to(root).as_posix()}
    whole = summary.complete(content, root)
    html = summary_page.page(whole, links=lambda address: address)
    write_atomically(new / PAGE, html)
    public = {name: whole[name] for name in ("model", "document", "fields")}
    write_json(new / "public_summary.json", public)
    manifest = read_json(new / MANIFEST)
    write_json(new / MANIFEST, {**manifest, "files": _files(new)})  # the grade asks for them
    write_json(new / GRADE, summary.grade(whole, root, html).as_dict())


def _records(root: Path, scale: str) -> dict[str, dict[str, Any]]:
    """The stages' records. Raises LabError, naming every fault of the run."""
    found, faults = {}, []
    made: dict[str, str] = {}
    for name, artifacts in STAGES.items():
        record = read_record(root, scale, name)
        if record is None and name in OPTIONAL:
            continue
        if record is None or record.get("state") != "done" or record["key"] is None:
            faults.append(f"{name} has not finished under `moxin-lab run`")
            continue
        found[name] = record
        environment = record["environment"]
        if environment.get("git_dirty") is not False or not environment.get("git_commit"):
            faults.append(f"{name} ran on files that no commit has; commit and run it again")
        for artifact in artifacts:
            made[artifact] = record["outputs"][artifact]["sha256"]
            path = stage_folder(root, scale, name) / artifact
            if not path.exists() or describe(path)["sha256"] != made[artifact]:
                faults.append(f"{path} is not what {name} left")
        faults += [
            f"{name} took another {taken} than the present one"
            for taken, facts in record["inputs"].items()
            if taken in made and facts["sha256"] != made[taken]
        ]
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        stages = " ".join(f"--only {name[:2]}" for name in STAGES)
        raise LabError(
            f"the run at {scale} scale is not fit for a release:\n{listed}\n"
            f"run: moxin-lab run --scale {scale} {stages}"
        )
    return found


def _measure(record: Mapping[str, Any], name: str) -> int:
    return int(next(m["value"] for m in record["measures"] if m["name"] == name))


def _date_of(root: Path, commit: str) -> str:
    """The day of a commit, YYYY-MM-DD. Raises LabError where the repository does not have it."""
    command = ["git", "-C", str(root), "show", "-s", "--format=%cs", f"{commit}^{{commit}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise LabError(
            f"the run was made at commit {commit}, which {root} does not have; fetch it"
        ) from None
    return done.stdout.strip()


def _training_text(documents: Path) -> dict[str, dict[str, int]]:
    """Documents and bytes of UTF-8 that the model could read, by data card."""
    columns = ["source", "num_bytes"]
    frame = curated.read(documents, "train", columns).to_pandas()
    grouped = frame.groupby("source")["num_bytes"]
    return {
        str(name): {"documents": int(part.size), "bytes": int(part.sum())} for name, part in grouped
    }


def _archive(
    path: Path,
    runs: Path,
    checkpoints: Mapping[str, Path],
    new: Path,
    records: Mapping[str, Any],
) -> dict[str, Any]:
    """Write what is too large for a clone; its name, SHA-256, and those of its files."""
    members: dict[str, Path] = {}
    for name, folder in checkpoints.items():
        members[f"float32/{name}/model.safetensors"] = folder / "model.safetensors"
        members[f"bfloat16/{name}/model.safetensors"] = new / name / "model.safetensors"
    for stage, artifact in (
        ("01_data_curation", "documents"),
        ("08_benchmarks", "evaluation_results"),
    ):
        if stage not in records:
            continue
        start = runs / stage / artifact
        members |= {
            f"{artifact}/{file.relative_to(start).as_posix()}": file
            for file in sorted(start.rglob("*"))
            if file.is_file()
        }
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, file in sorted(members.items()):
            content = file.read_bytes()
            member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return {
        "name": path.name,
        "sha256": sha256_file(path),
        "size": path.stat().st_size,
        "files": {name: sha256_file(file) for name, file in sorted(members.items())},
    }


def _make_small(new: Path, checkpoints: Mapping[str, Path]) -> None:
    """Take the weights out of the folder if it would be too large for a clone."""
    if sum(facts["size"] for facts in _files(new).values()) > MAX_TREE_BYTES:
        for name in checkpoints:
            (new / name / "model.safetensors").unlink()


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return dict(sorted(_each_file(folder)))


def _each_file(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, facts in describe(folder)["files"].items():
        if name != MANIFEST:
            yield name, facts
