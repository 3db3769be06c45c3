"""Scales: one YAML file each, one section per stage, checked here before any work starts.

Only sizes differ between the three scales of the package; depth, stage order, losses and the
shapes of schedules are the recipe. In `full.yaml` each value carries its source, or the words `our
choice`.

    scale = load("tiny")
    scale.pretraining.phases[0].sequence_length

A scale may lie outside the package. Its file says which scale it extends and gives only what
differs:

    # scales/quick.yaml
    extends: tiny
    pretraining:
      learning_rate: 1.0e-3
    reasoning:
      families: !replace {gcd: {max_value: 12}}

Mappings are merged key by key, also free ones such as `mixture`; lists and single values are
replaced; `!replace` before a mapping replaces it as a whole. The name is the file's stem, and
results go to `runs/quick/` and `reports/quick/`.

How a scale is found: tiny, small and full are the package's. Anything that ends in .yaml or .yml is
the path of a file. Any other word is a file `<word>.yaml` in a folder of MOXIN_SCALES (separated as
in PATH) or in `scales/` of the repository, whichever comes first.

Guarantees: an unknown key, a wrong value, an unknown or circular `extends` is refused with the file
that has it; a scale outside the package decides no claim that the scale it extends does not decide.
Out of scope: the sections and their fields (`moxin_lab.scales.sections`). Imports nothing heavy and
knows nothing of any model.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from moxin_lab import untrusted
from moxin_lab.scales.sections import (
    ApplicationsSettings,
    DataSettings,
    EvaluationSettings,
    HubSettings,
    InstructionTuningSettings,
    ModelSettings,
    PretrainingSettings,
    ReasoningSettings,
    Section,
    TokenizerSettings,
    VisionSettings,
)

SCALES = ("tiny", "small", "full")
FOLDERS_VARIABLE = "MOXIN_SCALES"
TAKEN_NAMES = (*SCALES, "released")  # reports/released/ holds the committed reports


class ScaleError(ValueError):
    """A scale that does not exist, or a scale file with a wrong value; the message names the file
    and the field.
    """


class Scale(Section):
    """A whole scale file, with what it extends."""

    name: str
    decides_as: Literal["tiny", "small", "full"]
    """The scale of the package that it is or that it extends, directly or through others. Claims
    and access to the hub follow it.
    """
    hub: HubSettings
    data: DataSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    pretraining: PretrainingSettings
    instruction_tuning: InstructionTuningSettings
    reasoning: ReasoningSettings
    vision: VisionSettings
    evaluation: EvaluationSettings
    applications: ApplicationsSettings


def load(scale: str | Path, root: Path | None = None) -> Scale:
    """Read and check a scale, given as a name or as the path of a file.

    root: the repository whose `scales/` is searched (default: the current folder). Raises
    ScaleError for an unknown scale or a wrong value.
    """
    return _load_file(_find(str(scale), _folders(root)), root, ())[0]


def use(scale: str | Path, root: Path | None = None) -> Scale:
    """As `load`; from then on this process and those that it starts find the scale by its name
    alone.
    """
    path = _find(str(scale), _folders(root)).resolve()
    loaded = _load_file(path, root, ())[0]
    if loaded.name not in SCALES:
        others = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
        folders = dict.fromkeys([str(path.parent), *filter(None, others)])
        os.environ[FOLDERS_VARIABLE] = os.pathsep.join(folders)
    return loaded


def _folders(root: Path | None) -> list[Path]:
    """Where a scale outside the package is searched by its name, in order."""
    named = filter(None, os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep))
    return [*map(Path, named), (root or Path()) / "scales"]


def _find(scale: str, folders: list[Path]) -> Path:
    """The file of a scale. Raises ScaleError if there is none."""
    if scale in SCALES:
        return Path(__file__).parent / f"{scale}.yaml"
    if scale.endswith((".yaml", ".yml")):
        if not Path(scale).is_file():
            raise ScaleError(f"there is no scale file {scale}")
        return Path(scale)
    if _is_name(scale):
        for folder in folders:
            if (folder / f"{scale}.yaml").is_file():
                return folder / f"{scale}.yaml"
    raise ScaleError(
        f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}, give the path of a .yaml "
        f"file, or put {scale}.yaml into the repository's scales/ or a folder of {FOLDERS_VARIABLE}"
    )


def _is_name(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", word) is not None


def _load_file(
    path: Path, root: Path | None, above: tuple[Path, ...]
) -> tuple[Scale, dict[str, Any]]:
    """A checked scale and its merged values; `above` are the files that extend this one."""
    if path.resolve() in above:
        raise ScaleError(
            f"{above[0]}: extends is circular: "
            + " -> ".join(file.name for file in (*above, path.resolve()))
        )
    try:
        content = untrusted.read_bytes(path, untrusted.MAX_YAML_BYTES)
        values = untrusted.load_yaml(content, loader=_Loader)
    except (OSError, untrusted.UntrustedError) as error:
        raise ScaleError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ScaleError(f"{path}: not a mapping of sections")
    name = path.stem
    if path.resolve().parent == Path(__file__).resolve().parent:
        decides_as, merged = name, _without_tags(values)
    else:
        base, base_values = _load_base(path, values.pop("extends", None), root, above)
        decides_as, merged = base.decides_as, _merge(base_values, values)
    reserved = [key for key in ("name", "decides_as") if key in values]
    if reserved:
        raise ScaleError(f"{path}: {', '.join(reserved)} cannot be set: it follows from the file")
    try:
        scale = Scale.model_validate({"name": name, "decides_as": decides_as, **merged})
    except ValidationError as error:
        raise ScaleError(f"{path}: {error}") from error
    return scale, merged


def _load_base(
    path: Path, extends: Any, root: Path | None, above: tuple[Path, ...]
) -> tuple[Scale, dict[str, Any]]:
    """What a file outside the package extends; a relative path counts from that file."""
    if not _is_name(path.stem) or path.stem in TAKEN_NAMES:
        raise ScaleError(
            f"{path}: a scale is named after its file: letters, digits, - and _, beginning with a "
            f"letter, and none of {', '.join(TAKEN_NAMES)}"
        )
    if not isinstance(extends, str):
        raise ScaleError(
            f"{path}: a scale outside the package needs `extends`: {', '.join(SCALES)} or another "
            "scale"
        )
    if extends.endswith((".yaml", ".yml")):
        extends = str(path.parent / extends)
    try:
        base = _find(extends, [path.parent, *_folders(root)])
    except ScaleError as error:
        raise ScaleError(f"{path}: extends: {error}") from None
    return _load_file(base, root, (*above, path.resolve()))


class _Loader(untrusted.Loader):
    """YAML with the tag `!replace` for mappings."""


class _Whole(dict[str, Any]):
    """A mapping that replaces the one it meets."""


def _whole(loader: _Loader, node: yaml.MappingNode) -> _Whole:
    values = loader.construct_mapping(node, deep=True)
    return _Whole((str(key), value) for key, value in values.items())


_Loader.add_constructor("!replace", _whole)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`base` with `values` laid over it; neither is changed."""
    merged = dict(base)
    for key, value in values.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and not isinstance(value, _Whole):
            merged[key] = _merge(before, value)
        else:
            merged[key] = _without_tags(value)
    return merged


def _without_tags(value: Any) -> Any:
    """Plain mappings all the way down."""
    if isinstance(value, dict):
        return {key: _without_tags(inner) for key, inner in value.items()}
    return value
