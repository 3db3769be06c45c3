"""Follows a page of docs/ in a copy of the tree, as a reader would who types what it says.

A page is Markdown; its fenced blocks say what they are for:

    ```python title="lab_rewards.py"       a new file with this text
    ```diff title="moxin_lab/stages.py"    lines of an existing file, and what takes their place
    ```sh                                  commands, run in the root of the tree
    ```text                                lines that the commands just before it print

Any other block is for the eye. Guarantees: a diff whose old lines are not in the file exactly once,
a command that fails, and a line that was not printed are errors that name the page and the block.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class PageError(AssertionError):
    """A page that does not do what it says; the message names the page and the block."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it belongs to (if any), and its text."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = [Block(*match.groups()) for match in FENCE.finditer(text)]
    if text.count("```") != 2 * len(found):
        raise PageError(
            f"{page.name}: a fence has no language, or does not close at a line's start"
        )
    return found


def copy_tree(repository: Path, folder: Path) -> Path:
    """A copy of what git tracks or would track, as it is on disk now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
    return folder


def follow(page: Path, tree: Path) -> None:
    """Do in `tree` what the page says. Raises PageError where that does not work."""
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, block {block.title or block.text.splitlines()[0]!r}"
        if block.language == "sh":
            printed = _run(block.text, tree, where)
        elif block.language == "text":
            missing = [line for line in block.text.splitlines() if line.strip() not in printed]
            if missing:
                raise PageError(f"{where}: not printed: {missing[0]!r}, but:\n{printed}")
        elif block.language == "diff" and block.title:
            apply_diff(tree / block.title, block.text, where)
        elif block.title:
            path = tree / block.title
            if path.exists():
                raise PageError(f"{where}: {block.title} exists already")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def apply_diff(path: Path, diff: str, where: str) -> None:
    """Replace the old lines of a diff without line numbers by its new lines."""
    old, new = [], []
    for line in diff.splitlines():
        sign, rest = line[:1] or " ", line[1:]
        if sign not in " +-":
            raise PageError(f"{where}: a line of a diff begins with a space, + or -, not {line!r}")
        if sign != "+":
            old.append(rest)
        if sign != "-":
            new.append(rest)
    text = path.read_text(encoding="utf-8")
    before = "\n".join(old) + "\n"
    if text.count(before) != 1:
        raise PageError(
            f"{where}: its old lines are in {path.name} {text.count(before)} times:\n{before}"
        )
    path.write_text(text.replace(before, "\n".join(new) + "\n"), encoding="utf-8")


def _run(commands: str, tree: Path, where: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tree),  # the copy, not the tree that is installed
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        raise PageError(f"{where}: exit code {result.returncode}\n{result.stdout}")
    return result.stdout
