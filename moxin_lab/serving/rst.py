"""reStructuredText to HTML with docutils, also where it was written for Sphinx.

Roles and directives that docutils does not know keep their text: a role its title, a directive its
argument and its content.

Guarantees: no file is included, no HTML passed through, no configuration file read; a role or
directive that is unknown loses no text, except those that steer a builder (DROPPED).
Out of scope: what a builder would generate: tables of contents, signatures from modules.
"""

import re
from typing import Any

from docutils import nodes
from docutils.core import publish_parts
from docutils.parsers.rst import Directive, directives, roles

from moxin_lab.data.unreadable import Unreadable


def words(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


DROPPED = words(
    "acks auto autoclass autofunction automodule centered codeauthor currentmodule default-domain "
    "highlight highlightlang include index literalinclude moduleauthor module sectionauthor "
    "tabularcolumns toctree py:module py:currentmodule testsetup testcleanup"
)
"""Directives that hold no text for a reader."""
LITERAL = words(
    "code-block code sourcecode doctest testcode testoutput parsed-literal productionlist prompt "
    "ipython ipython3 graphviz digraph mermaid"
)
"""Directives whose content is shown as it is."""
_DIRECTIVE = re.compile(
    r"^[ \t]*\.\.[ \t]+(?:\|[^|\n]+\|[ \t]+)?([\w.:+-]+?)[ \t]?::", re.MULTILINE
)
_ROLE = re.compile(r":([A-Za-z][\w.:+-]*):`|`:([A-Za-z][\w.:+-]*):")
_TARGET = re.compile(r"\A(.*?)\s*<[^<>]*>\Z", re.DOTALL)
SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,
    "report_level": 5,  # faults of a document are no text of it
    "halt_level": 5,
    "syntax_highlight": "none",
    "math_output": "LaTeX",
    "doctitle_xform": False,
    "sectsubtitle_xform": False,
    "initial_header_level": 1,
    "line_length_limit": 100_000,
}


def rst_to_html(source: str) -> str:
    """The body of a document as HTML. Raises Unreadable for one that docutils cannot parse."""
    for name in {match.lower() for match in _DIRECTIVE.findall(source)}:
        _know_directive(name)
    for name in {(before or after).lower() for before, after in _ROLE.findall(source)}:
        _know_role(name)
    try:
        return publish_parts(source, writer="html5", settings_overrides=SETTINGS)["body"]
    except RecursionError:
        raise Unreadable("page too complex", "lists or quotes nested too deeply") from None
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        # docutils' own faults on damaged input; it has no exception of its own for them
        raise Unreadable("not reStructuredText", f"docutils: {error}") from error


class _AnyOption(dict):
    """Accepts every option, as text."""

    def __getitem__(self, name: str) -> Any:
        return directives.unchanged


class _Shown(Directive):
    """An unknown directive: its argument as a paragraph, then its content."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = _AnyOption(any=directives.unchanged)

    def run(self) -> list[nodes.Node]:
        shown: list[nodes.Node] = []
        if self.arguments:
            text, messages = self.state.inline_text(self.arguments[0], self.lineno)
            shown += [nodes.paragraph("", "", *text), *messages]
        container = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, container)
        return [*shown, container]


class _Literal(_Shown):
    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        return [nodes.literal_block(text, text)] if text.strip() else []


class _Dropped(_Shown):
    def run(self) -> list[nodes.Node]:
        return []


def _know_directive(name: str) -> None:
    if name in DROPPED or name in LITERAL:
        directives.register_directive(name, _Dropped if name in DROPPED else _Literal)
    elif name not in directives._directive_registry and name not in directives._directives:
        directives.register_directive(name, _Shown)


def _know_role(name: str) -> None:
    if name not in roles._role_registry and name not in roles._roles:
        roles.register_local_role(name, _title)


def _title(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: Any = None,
    content: Any = None,
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """A role that shows its title: `print` for `:func:`~builtins.print`` and for
    `:func:`print <builtins.print>``.
    """
    shown = nodes.unescape(text)
    if titled := _TARGET.match(shown):
        shown = titled[1]
    elif shown.startswith("~"):
        shown = shown.rsplit(".", 1)[-1].lstrip("~")
    return [nodes.literal(rawtext, shown.lstrip("!"))], []
