"""JSON and YAML that no one here wrote: plain values, or an error within a second.

    load_yaml(text)         load_json(text)         read_bytes(path, MAX_YAML_BYTES)
    printable(name)         # "\\x1b[31mModel", where printing the name would colour the terminal

Refused are: text that is too long, nested too deeply or, with its YAML aliases expanded, of too
many parts; an alias inside its own anchor; a mapping that names a key twice; YAML keys that are
huge integers; numbers and tags that cannot be read.

Guarantees: whatever the text is, the result is a value or an `UntrustedError` that says why, and in
which line where YAML is concerned. The limits are checked on libyaml's events before a value is
made, since libyaml's own loader ends the process at some 50,000 open brackets.
Out of scope: what the values mean; naming the file (`lab/artifacts.py`, `scales/`).
"""

import json
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_BYTES = 4 * 2**20
"""A hundred times the longest YAML file of this repository."""
MAX_JSON_BYTES = 16 * 2**20
"""Makes at most 400 MB of Python objects, all of them empty lists."""
MAX_DEPTH = 100
"""Levels of nesting; an executed notebook has about ten."""
MAX_PARTS = 100_000
"""Scalars, lists and mappings of a YAML text, aliases expanded; our own files have 2,000."""
MAX_NUMBER_LETTERS = 1_000
"""Longest number or date of a YAML text. A number in base 60 takes time by the square of it."""
MAX_DIRECTIVES = 16
"""Lines that begin with `%TAG`. libyaml compares each with all others: 150,000 take 80 s."""
MAX_INTEGER_KEY = 2**61 - 1
"""Python's hash of an integer is its remainder by this number, so that a mapping of its multiples
takes time by the square of their count.
"""

_DIRECTIVE = re.compile(r"(?:\A|[\n\r\x85\u2028\u2029])\ufeff?%TAG")
"""At the beginning of a line; these are all line breaks of libyaml."""
_NO_FILE = '"<unicode string>", '
"""What PyYAML calls a text without a file."""


_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor, sets its colours, breaks a line, turns the direction of the text
around it, or cannot be written as UTF-8 (part of a file's name in another encoding).
"""


class UntrustedError(ValueError):
    """Text that is not JSON or YAML, or is beyond the limits; the message says what and where."""


def printable(text: str) -> str:
    """A name or value that a file gave, for one line of a terminal: what would act on it there is
    written as an escape, such as `\\x1b`.
    """
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A file's content. Raises UntrustedError for more than `max_bytes`, before it is read, and
    OSError.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UntrustedError("it is no file, but a pipe or a device")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UntrustedError(f"it is larger than {max_bytes:,} bytes")
    return content


def text_of(content: str | bytes) -> str:
    """UTF-8 text. Raises UntrustedError."""
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedError(f"it is not UTF-8 text: {error}") from None


# ---- JSON


def load_json(content: str | bytes, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON text. Raises UntrustedError."""
    text = text_of(content)
    if len(text) > max_bytes:
        raise UntrustedError(f"it is larger than {max_bytes:,} bytes")
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise UntrustedError(f"it is nested too deeply (more than {MAX_DEPTH} levels)") from None
    except UntrustedError:
        raise
    except ValueError as error:  # also too many digits
        raise UntrustedError(str(error)) from None
    _check_depth(value)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise UntrustedError(f"the key {key!r} is given twice")
            seen.add(key)
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], -1  # scalars are on a level of their own
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UntrustedError(f"it is nested too deeply (more than {MAX_DEPTH} levels)")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values() or (None,)
            elif isinstance(item, list):
                below += item or (None,)
        level = below


# ---- YAML


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen at run time
    """YAML's plain values, no key twice in a mapping, no number of a thousand digits."""

    def flatten_mapping(self, node: Any) -> None:
        """As in PyYAML, which calls this on each mapping and on what is merged into it by `<<`; but
        a key that is given twice is an error, and so is an integer key of MAX_INTEGER_KEY or more.
        A merged key may be overridden.
        """
        if not getattr(node, "is_checked", False):
            node.is_checked = True  # later, the keys that were merged are among its own
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: Any) -> None:
        seen: set[Hashable] = set()
        has_merge = False
        for key_node, _ in node.value:
            if is_merge := key_node.tag == "tag:yaml.org,2002:merge":
                key: Any = key_node.value
                is_repeated, has_merge = has_merge, True
            else:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable):
                    continue  # PyYAML refuses it
                if isinstance(key, int) and abs(key) >= MAX_INTEGER_KEY:
                    raise yaml.constructor.ConstructorError(
                        None, None, "an integer key of 2**61 - 1 or more", key_node.start_mark
                    )
                is_repeated = key in seen
            if is_repeated:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if not is_merge:
                seen.add(key)

    def construct_number(self, node: Any) -> Any:
        """An int, a float or a date, of at most MAX_NUMBER_LETTERS."""
        if len(node.value) > MAX_NUMBER_LETTERS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value)} digits", node.start_mark
            )
        kind = node.tag.rpartition(":")[2]
        return getattr(self, f"construct_yaml_{kind}")(node)


for _kind in ("int", "float", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", Loader.construct_number)


def load_yaml(content: str | bytes, *, loader: type[Loader] = Loader) -> Any:
    """The value of a YAML text of one document. loader: with the tags that it may use. Raises
    UntrustedError.
    """
    text = text_of(content)
    if len(text) > MAX_YAML_BYTES:
        raise UntrustedError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
    if text.count("%TAG") > MAX_DIRECTIVES and len(_DIRECTIVE.findall(text)) > MAX_DIRECTIVES:
        raise UntrustedError(f"it has more than {MAX_DIRECTIVES} %TAG directives")
    try:
        _check_events(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except UntrustedError:
        raise
    except yaml.YAMLError as error:
        raise UntrustedError(" ".join(str(error).replace(_NO_FILE, "").split())) from None
    except Exception as error:  # noqa: BLE001 - a tag such as `!!int x` ends in many types
        raise UntrustedError(
            f"a value does not fit its tag ({type(error).__name__}: {error})"
        ) from None


def _check_events(events: Iterator[Any]) -> None:
    """Raises UntrustedError for too many levels or parts, each alias counted as what it stands for,
    and for an alias inside its own anchor.
    """
    sizes: dict[str | None, tuple[int, int]] = {}  # anchor -> (parts, levels) of what it stands for
    path: list[list[Any]] = []  # open collections as [anchor, parts, levels]
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise UntrustedError(f"{_line(event)}: a second document begins; one is read")
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _, _ in path):
                raise UntrustedError(f"{_line(event)}: the alias *{event.anchor} contains itself")
            # libyaml's composer names an alias without an anchor
            parts, levels = sizes.get(event.anchor, (1, 0))
        elif isinstance(event, yaml.CollectionStartEvent):
            path.append([event.anchor, 1, 1])
            if len(path) > MAX_DEPTH:
                raise UntrustedError(
                    f"{_line(event)}: it is nested too deeply (more than {MAX_DEPTH} levels)"
                )
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, parts, levels = path.pop()
            if anchor is not None:
                sizes[anchor] = parts, levels
        elif isinstance(event, yaml.ScalarEvent):
            parts, levels = 1, 0
            if event.anchor is not None:
                sizes[event.anchor] = parts, levels
        else:
            continue
        if path:
            path[-1][1] += parts
            path[-1][2] = max(path[-1][2], levels + 1)
        if parts > MAX_PARTS or (path and path[-1][1] > MAX_PARTS):
            raise UntrustedError(
                f"{_line(event)}: it has more than {MAX_PARTS:,} parts, aliases expanded"
            )
        if len(path) + levels > MAX_DEPTH:
            raise UntrustedError(
                f"{_line(event)}: it is nested too deeply (more than {MAX_DEPTH} levels)"
            )


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"
