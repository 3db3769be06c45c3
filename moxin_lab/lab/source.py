"""The algorithm on the page: `show_source` puts a function of the package into a notebook, and
`versions` what ran it.

    lab.show_source(decoder.rotate)

Guarantees: what is shown is the code that runs and that the tests test, without its docstring,
whose place is taken by the words of the notebook.
Out of scope: highlighting (the notebook's viewer and the report site do it).
"""

import ast
import inspect
import platform
import textwrap
from collections.abc import Callable
from typing import Any

from moxin_lab.lab import show
from moxin_lab.lab.environment import PACKAGES, installed_version

MOST_LINES = 40
"""A longer function does not belong on a page as a whole. Our choice."""


def show_source(function: Callable[..., Any] | property | type) -> None:
    """Display the source of a function, method or property, named with its module.

    Raises ValueError for more than 40 lines without the docstring: show a part of it, moved into a
    function of its own.
    """
    target: Any = function.fget if isinstance(function, property) else function
    code = source_of(target)
    count = len(code.splitlines())
    if count > MOST_LINES:
        raise ValueError(
            f"{target.__qualname__} has {count} lines, more than the {MOST_LINES} that can be read "
            "on a page: show a smaller function"
        )
    show.say(f"`{target.__qualname__}` in `{target.__module__}`:\n\n```python\n{code}\n```")


def source_of(target: Any) -> str:
    """The source of a function or class, indented from the left edge, without its docstring."""
    code = textwrap.dedent(inspect.getsource(target)).rstrip()
    definition = ast.parse(code).body[0]
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    if ast.get_docstring(definition, clean=False) is None or len(definition.body) == 1:
        return code
    docstring, lines = definition.body[0], code.splitlines()
    assert docstring.end_lineno is not None
    rest = lines[docstring.end_lineno :]
    while rest and not rest[0].strip():
        rest = rest[1:]
    return "\n".join([*lines[: docstring.lineno - 1], *rest])


def versions() -> str:
    """Python, the machine and the packages that a page was made with, in one sentence."""
    found = {name: installed_version(name) for name in PACKAGES}
    packages = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    return (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; "
        f"{packages}."
    )
