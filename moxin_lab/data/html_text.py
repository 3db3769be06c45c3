"""The main content of an HTML page as text.

    page -> scan (`html_scan.py`) -> lexbor's tree -> what is never content, removed
         -> the publisher's <main>, or the blocks beside the main one judged -> text

resiliparse parses and writes the text. Its own choice of main content is not used: it loses each
text node of one three-byte character (\u3068, \u3001, \u2014), takes quadratic time on nested
elements, and leaves out tables and lists that a word in a class name makes suspicious.

What goes: navigation, forms, scripts, hidden elements, links to the heading itself; and, beside the
block that holds most of the text, blocks that are mostly links or that are named as header, footer
or menu. What stays: everything inside the main block.

Guarantees: no character of the main block is lost in any script, and words of different blocks are
never joined; time linear in the page (`html_scan.py` refuses what would not be); the same page
gives the same text.
Out of scope: pages whose text a script writes; layout by style sheets.
"""

import re
from collections.abc import Iterator
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from moxin_lab.data.html_scan import MAX_DEPTH, scan
from moxin_lab.data.unreadable import Unreadable

NEVER_CONTENT = ", ".join(
    (
        "script, style, template, noscript, svg, canvas, iframe, object, audio, video, dialog",
        "button, select, textarea, datalist, input",
        "nav, [role=navigation], [role=search], [role=banner], [role=contentinfo], [role=menu]",
        "[role=menubar], [role=toolbar], [role=dialog], [role=alertdialog]",
        '[aria-hidden=true], [style*="display:none" i], [style*="display: none" i]',
        ".headerlink, .anchorjs-link, .navheader, .navfooter, .docnav, .breadcrumb",
        "[class*=navbar], .breadcrumbs, .pagination, .skip-link, .noprint, .printfooter",
        ".editsection, .mw-editsection, .nav_table",
    )
)
"""Elements that are no content wherever they stand. CSS selectors."""
MAIN = "main, [role=main], [itemprop=articleBody]"
BESIDE = re.compile(
    r"(?:^|[\s_-])(?:nav|navi|navigation|menu|menubar|side-?bar\w*|toc\w*|header|footer|foot|banner|"
    r"breadcrumbs?|related|languages?|copyright|legal|search|donat\w*|share|social|login|toolbar|"
    r"topbar|bottombar|catlinks|debug)(?:$|[\s_-])",
    re.IGNORECASE,
)
"""Words in the class or id of a block beside the main one that say that it is none."""
HEAVY = 0.6
"""Share of a level's text from which a block counts as the main one of its level."""
LINKED = 0.5
"""Share of a block's characters inside links from which it counts as navigation."""
SHORT = 400
"""Characters below which a block beside the main one is dropped by its name alone."""
MAX_LEVELS = 24
"""Most levels from the body down to the main block."""
MAX_BLOCKS = 500
"""Most elements of a level of layout; a level with more is running text."""
RUNNING_TEXT = 3
"""Paragraphs from which a level is running text, whose boxes and lists belong to it."""
_BLOCKS = frozenset(
    ("ADDRESS", "ARTICLE", "ASIDE", "CENTER", "DIV", "DL", "FIELDSET", "FOOTER", "FORM", "HEADER")
    + ("MENU", "OL", "SECTION", "TABLE", "TBODY", "TD", "TR", "UL")
)
_APART = "table, summary, legend, menu, dir, dialog, listing, xmp, search, caption"
"""Block elements that resiliparse writes on the line of the text before or after them."""


def html_to_text(html: str) -> str:
    """Main content of a page as text, block elements on their own lines, list items marked.

    Raises Unreadable if the page is damaged, cut off, too deeply nested, is not HTML, or has no
    main content.
    """
    tree = main_content(html)
    if tree.body is not None:
        _set_apart(tree, tree.body)
    text = extract_plain_text(tree, main_content=False).strip()
    if not text:
        raise Unreadable(
            "no main content", "the page holds no text outside navigation, scripts and footer"
        )
    return text


def main_content(html: str) -> HTMLTree:
    """A page's tree whose body holds the main content alone, elements at most MAX_DEPTH deep.

    Raises Unreadable as `html_to_text` does, but not for a page without any content.
    """
    markup, deep = scan(html)
    tree = HTMLTree.parse(markup)
    if deep and (depth := _depth(tree)) > MAX_DEPTH:
        raise Unreadable("page too complex", f"elements nested {depth} deep")
    if tree.body is not None:
        _keep_main(tree.body)
    return tree


def _keep_main(body: Any) -> None:
    show_one_alternative(body)
    for element in _all(body, NEVER_CONTENT):
        element.remove()
    mains = [main for main in _all(body, MAIN) if (main.text_content or "").strip()]
    if len(mains) == 1:
        heading = None if mains[0].query_selector("h1") else body.query_selector("h1")
        body.replace_children(*([heading] if heading else []), mains[0])
    else:
        _drop_beside(body)


def show_one_alternative(body: Any) -> None:
    """Of hidden elements that are all that their parent holds, shows one; removes the others.

    A script chooses one by the reader's system (`<span hidden>Command</span><span hidden>Ctrl
    </span>`). Without one the sentence has a hole. The one whose id or class begins with `default`
    is shown, else the first.
    """
    groups: list[tuple[Any, list[Any]]] = []
    for element in _all(body, "[hidden]"):
        parent = element.parent_element
        if groups and groups[-1][0] == parent:
            groups[-1][1].append(element)
        else:
            groups.append((parent, [element]))
    for parent, hidden in groups:
        shown = None
        if parent is not None and _is_switch(parent, hidden):
            shown = next(filter(_is_default, hidden), hidden[0])
        for element in hidden:
            if element is not shown:
                element.remove()


def _is_switch(parent: Any, hidden: list[Any]) -> bool:
    """Whether `hidden` are all that `parent` holds: two or more, or one if its name is a switch."""
    named = "switch" in (parent.class_name or "")
    if len(hidden) != parent.child_element_count or not (named or len(hidden) > 1):
        return False
    inside = sum(len((element.text_content or "").strip()) for element in hidden)
    return inside > 0 and len("".join((parent.text_content or "").split())) == sum(
        len("".join((element.text_content or "").split())) for element in hidden
    )


def _is_default(element: Any) -> bool:
    return (element.id or "").startswith("default") or "default" in (element.class_name or "")


def _drop_beside(body: Any) -> None:
    """From the body down to the block that holds most of the text, drops what stands beside it."""
    node, linked = body, _linked(body)
    for _ in range(MAX_LEVELS):
        if not 0 < node.child_element_count <= MAX_BLOCKS:
            return
        children, paragraphs = [], 0
        for child in _children(node):
            children.append(child)
            paragraphs += child.tag_name == "P"
            if paragraphs == RUNNING_TEXT:
                return
        blocks = [(child, _size(child)) for child in children]
        largest = max(range(len(blocks)), key=lambda i: blocks[i][1])
        links = [_linked(block) if i != largest else 0 for i, (block, _) in enumerate(blocks)]
        links[largest] = max(linked - sum(links), 0)  # each link is counted once, not per level
        plain = [
            0 if inside >= LINKED * size and _suspect(block) else size - inside
            for (block, size), inside in zip(blocks, links, strict=True)
        ]
        heavy = max(range(len(blocks)), key=plain.__getitem__)
        found = plain[heavy] > 0 and plain[heavy] >= HEAVY * sum(plain)
        if not found and paragraphs:
            return  # running text: a box in it belongs to it
        for i, (block, size) in enumerate(blocks):
            if size and not (found and i == heavy):
                smaller = found and size <= blocks[heavy][1]
                if _is_beside(block, size, links[i], smaller):
                    block.remove()
        if not found:
            return
        node, linked = blocks[heavy][0], links[heavy]


def _all(node: Any, selectors: str) -> list[Any]:
    """Elements below `node` that match. A walk through the match object itself is quadratic."""
    return node.query_selector_all(selectors).values()


def _children(node: Any) -> Iterator[Any]:
    """Child elements; `node.children` takes quadratic time."""
    child = node.first_element_child
    while child is not None:
        following = child.next_element_sibling
        yield child
        child = following


def _size(element: Any) -> int:
    return len((element.text_content or "").strip())


def _linked(block: Any) -> int:
    """Characters inside links."""
    if block.tag_name == "A":
        return _size(block)
    return sum(_size(link) for link in _all(block, "a[href]"))


def _suspect(block: Any) -> bool:
    """Whether its tag or its name says that a block is no content."""
    return block.tag_name in ("HEADER", "FOOTER", "ASIDE", "FORM") or bool(
        BESIDE.search(f"{block.id or ''} {block.class_name or ''}")
    )


def _is_beside(block: Any, size: int, linked: int, smaller: bool) -> bool:
    """Whether a block is navigation, a header or a footer.

    smaller: a larger block of its level holds most of the text. If none does, the block may be part
    of the content, and links alone do not condemn it.
    """
    if block.tag_name not in _BLOCKS:
        return False  # an inline element is part of a sentence
    if smaller and linked >= LINKED * size:
        return True
    return _suspect(block) and (size < SHORT or 2 * linked >= LINKED * size)


def _set_apart(tree: HTMLTree, body: Any) -> None:
    for element in _all(body, _APART):
        # After a table resiliparse begins a line itself.
        for place in (element.before, element.after)[: 1 if element.tag_name == "TABLE" else 2]:
            line = tree.create_element("br")
            if line is not None:
                place(line)


def _depth(tree: HTMLTree) -> int:
    """Most elements inside each other."""
    deepest = depth = 0
    node: Any = tree.body
    while node is not None:
        if node.first_element_child is not None:
            node, depth = node.first_element_child, depth + 1
            deepest = max(deepest, depth)
            continue
        while depth and node.next_element_sibling is None:
            node, depth = node.parent_element, depth - 1
        if not depth:
            break
        node = node.next_element_sibling
    return deepest
