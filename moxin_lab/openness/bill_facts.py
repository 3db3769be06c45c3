"""The facts from which every bill of materials is written: models, data sets, and packages.

    gather(root, "tiny")     # from stage records, data_cards/*/croissant.json and requirements.lock

Guarantees: hashes, sizes and numbers are those of the records and cards; nothing is typed here but
what an artifact is. A run that has made no model yet has a bill without models.
Out of scope: the formats (`bills.py`, `spdx_bill.py`, `cyclonedx_bill.py`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, read_json, read_record, read_text, read_yaml
from moxin_lab.stages import STAGES, producer

MODELS = {
    "tokenizer": "Tokenizer: byte-level BPE vocabularies behind a router by script.",
    "pretrained": "Language model of 36 decoder blocks, pretrained in three phases.",
    "sft": "The pretrained model after supervised fine-tuning on instructions.",
    "instruct": "The fine-tuned model after preference optimisation.",
    "cot_sft": "The instruction model after fine-tuning on chains of thought.",
    "reasoning": "The model with chains of thought after GRPO with verified rewards.",
    "vision_towers": "Image encoders in the architectures of DINOv2 and SigLIP.",
    "vlm": "Vision-language model: both image encoders, a projector, the language model.",
    "adapted": "Adapters of the vertical fine-tunes of stage 09.",
}
"""Artifact -> what it is."""
COMPARED_WITH = {"01_data_curation": ("instructions",)}
"""Stage -> cards that it reads to remove what is in them from its documents."""
NOT_LEARNT = {"sft": ("preferences",), "vision_towers": ("charts",)}
"""Artifact -> cards that its stage reads for another artifact."""
LICENCE = "CDLA-Permissive-2.0"
"""Of data and weights that the lab makes: the README and MOF.yml say so."""
EVALUATION_ONLY = "evaluation-only"
"""Tag of a data card on which nothing is trained."""
MAX_METRICS = 40


@dataclass(frozen=True)
class Data:
    """One data card, as its Croissant file describes it."""

    name: str
    title: str
    description: str
    licences: tuple[str, ...]
    """SPDX identifiers; none where each package has its own."""
    creators: tuple[str, ...]
    version: str
    published: str
    """ISO date."""
    sha256: str
    """The content hash of its identifier."""
    identifier: str
    size: int
    """Bytes of its files."""
    biases: tuple[str, ...]
    collection: str
    personal: str
    evaluation_only: bool
    images: bool


@dataclass(frozen=True)
class Model:
    """One artifact with weights, or the tokenizer."""

    name: str
    stage: str
    description: str
    sha256: str
    size: int
    finished: str
    """ISO time at which its stage ended."""
    files: tuple[tuple[str, str], ...]
    """(name, SHA-256) of each."""
    metrics: tuple[tuple[str, str], ...]
    """(name with labels and unit, value) as the stage measured."""
    hyperparameters: tuple[tuple[str, str], ...]
    made_from: tuple[str, ...]
    """Models that its stage took."""
    trained_on: tuple[str, ...]
    """Data cards, also of earlier stages; those for evaluation are among them."""


@dataclass(frozen=True)
class Bill:
    """Everything that a bill lists."""

    scale: str
    title: str
    version: str
    supplier: str
    licence: str
    """Of the code."""
    created: str
    """ISO time of the last stage; of the version's release where none has run."""
    commit: str
    models: tuple[Model, ...]
    data: tuple[Data, ...]
    packages: tuple[tuple[str, str], ...]
    """(name, version) of each locked package."""


def gather(root: Path, scale: str) -> Bill:
    """Facts of a scale's report. Raises LabError for a card without croissant.json and for a file
    that cannot be read.
    """
    about = read_yaml(root / "CITATION.cff")
    records = [r for info in STAGES if (r := read_record(root, scale, info.name)) is not None]
    by_stage = {record["stage"]: record for record in records}
    finished = [record["finished_at"] for record in records]
    commits = {(r.get("environment") or {}).get("git_commit") for r in records} - {None}
    return Bill(
        scale=scale,
        title=str(about["title"]),
        version=str(about["version"]),
        supplier=str(about["authors"][0].get("name", "Moxin Lab contributors")),
        licence=str(about["license"]),
        created=max(finished, default=f"{about['date-released']}T00:00:00Z"),
        commit=str(commits.pop()) if len(commits) == 1 else "",
        models=tuple(
            _model(name, record, by_stage)
            for record in records
            for name in record["outputs"]
            if name in MODELS
        ),
        data=tuple(
            _data(folder)
            for folder in sorted((root / "data_cards").iterdir())
            if (folder / "README.md").is_file()
        ),
        packages=packages(root / "requirements.lock"),
    )


def packages(lock: Path) -> tuple[tuple[str, str], ...]:
    """Names and versions of a lock file. Raises LabError for a file without any."""
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", read_text(lock))
    if not found:
        raise LabError(f"{lock} locks no package; write it with: make lock")
    return tuple(sorted(set(found)))


def _data(folder: Path) -> Data:
    path = folder / "croissant.json"
    if not path.is_file():
        raise LabError(f"{path} is missing; write it with: moxin-lab cards write {folder.name}")
    value = read_json(path)
    try:
        return Data(
            name=value["name"],
            title=value["description"].split(". ", 1)[0],
            description=value["description"],
            licences=tuple(
                match[1]
                for address in _listed(value["license"])
                if (match := re.fullmatch(r"https://spdx\.org/licenses/(.+)\.html", address))
            ),
            creators=tuple(creator["name"] for creator in _listed(value["creator"])),
            version=value["version"],
            published=value["datePublished"][:10],
            sha256=_digest_of(value["identifier"]),
            identifier=value["identifier"],
            size=sum(int(f["contentSize"].split()[0]) for f in _listed(value["distribution"])),
            biases=tuple(_listed(value["rai:dataBiases"])),
            collection=value["rai:dataCollection"],
            personal=" ".join(_listed(value["rai:personalSensitiveInformation"])),
            evaluation_only=EVALUATION_ONLY in _listed(value.get("keywords") or []),
            images='"sc:ImageObject"' in read_text(path),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LabError(
            f"{path} is not as `moxin-lab cards write {folder.name}` writes it: "
            f"{type(error).__name__}: {error}"
        ) from error


def _digest_of(identifier: str) -> str:
    """Hexadecimal SHA-256 of an RFC 6920 name."""
    import base64

    encoded = identifier.removeprefix("ni:///sha-256;")
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()


def _model(
    name: str, record: Mapping[str, Any], by_stage: Mapping[str, Mapping[str, Any]]
) -> Model:
    output = record["outputs"][name]
    return Model(
        name=name,
        stage=record["stage"],
        description=MODELS[name],
        sha256=output["sha256"],
        size=output["size"],
        finished=record["finished_at"],
        files=tuple((file, about["sha256"]) for file, about in output.get("files", {}).items()),
        metrics=tuple(_metric(measure) for measure in record["measures"][:MAX_METRICS]),
        hyperparameters=tuple(_scalars(record.get("settings") or {})),
        made_from=tuple(artifact for artifact in record["inputs"] if artifact in MODELS),
        trained_on=tuple(sorted(_cards_of(record, by_stage) - {*NOT_LEARNT.get(name, ())})),
    )


def _cards_of(record: Mapping[str, Any], by_stage: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Data cards that a stage read, itself or through the artifacts that it took."""
    found = set(record.get("data_cards") or {}) - {*COMPARED_WITH.get(record["stage"], ())}
    for artifact in record["inputs"]:
        if (earlier := by_stage.get(producer(artifact).name)) is not None:
            found |= _cards_of(earlier, by_stage)
    return found


def _metric(measure: Mapping[str, Any]) -> tuple[str, str]:
    labels = ", ".join(f"{key} {value}" for key, value in (measure.get("labels") or {}).items())
    unit = f" [{measure['unit']}]" if measure.get("unit") else ""
    return f"{measure['name']}{f' ({labels})' if labels else ''}{unit}", repr(measure["value"])


def _scalars(value: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    """Settings that are numbers or words, by their dotted name."""
    found: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            found += _scalars(inner, f"{prefix}{key}.")
        elif isinstance(inner, str | int | float | bool) and str(inner):
            found.append((f"{prefix}{key}", str(inner)))
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
