"""The parts of a card's README that are written from its facts: the card at a glance, and how to
cite it.

    with_blocks(text, facts)      # the README with both parts as they are now

The Data Cards Playbook (Pushkarna, Zaldivar and Kjartansson 2022, arXiv 2204.01075) has three
reading depths: telescope (what is it, may I use it), periscope (how is it built up, in numbers) and
microscope (who decided what, and why). `DEPTHS` says which headings each depth has.

Guarantees: each number is of the files; the same card gives the same text.
Out of scope: the tables of numbers (`card_numbers.py`), prose.
"""

import re

from moxin_lab.data.card_facts import CardFacts

DEPTHS = {
    "Telescope": ("At a glance",),
    "Periscope": ("Dataset Details", "Uses", "Dataset Structure", "How to cite"),
    "Microscope": ("Dataset Creation", "Bias, Risks, and Limitations"),
}
"""Reading depth -> its level-2 headings."""
QUESTIONS = {
    "Telescope": "what it is, and whether it may be used",
    "Periscope": "how it is built up, in numbers",
    "Microscope": "who decided what, and why",
}
WORDS_PER_MINUTE = 200
"""Reading speed of technical prose; our choice, as in the report."""


def with_blocks(text: str, facts: CardFacts) -> str:
    """A README with its generated parts `glance` and `cite`. A part without markers stays absent;
    `missing_parts` names it.
    """
    text = _with_block(text, "cite", citation(facts))
    return _with_block(text, "glance", glance(facts, text))


def _with_block(text: str, name: str, block: str) -> str:
    pattern = rf"(?s)(<!-- {name}: begin[^\n]*-->)\n.*?(<!-- {name}: end -->)"
    return re.sub(pattern, lambda markers: f"{markers[1]}\n\n{block}\n\n{markers[2]}", text)


def missing_parts(text: str) -> list[str]:
    """Generated parts without markers, and headings of a reading depth that the README lacks."""
    found = [
        f"no markers `<!-- {name}: begin -->` and `<!-- {name}: end -->`"
        for name in ("glance", "cite")
        if not re.search(rf"(?s)<!-- {name}: begin[^\n]*-->\n.*?<!-- {name}: end -->", text)
    ]
    headings = set(re.findall(r"(?m)^## +(.+?)\s*$", text)) | {"At a glance"}
    return found + [
        f"no section {heading!r}, which the depth {depth.lower()} needs"
        for depth, needed in DEPTHS.items()
        for heading in needed
        if heading not in headings
    ]


def glance(facts: CardFacts, text: str) -> str:
    """The telescope: a table, and where the two other depths are."""
    out_of_scope = _first_sentence(facts.sections.get("Out-of-Scope Use", ""))
    rows = [
        ("For", _first_sentence(facts.sections.get("Direct Use", ""))),
        ("Not for", out_of_scope),
        ("Rows", f"{facts.rows:,}"),
        ("Size", f"{facts.size / 2**20:,.1f} MiB in {_files(facts)}"),
        ("Languages", ", ".join(facts.languages)),
        ("Licence", ", ".join(facts.licences) or "of each package, its own"),
        ("By", "; ".join(facts.creators)),
        ("Version", f"{facts.version} of {facts.published}"),
        ("Content hash", f"SHA-256 `{facts.sha256}`"),
    ]
    depths = [
        f"- **{depth}** ({QUESTIONS[depth]}), {_minutes(text, headings)}: "
        + (", ".join(f"[{heading}](#{_anchor(heading)})" for heading in headings))
        for depth, headings in DEPTHS.items()
    ]
    table = [f"| {name} | {value} |" for name, value in rows if value]
    return "\n".join(["## At a glance", "", "| What | Answer |", "|---|---|", *table, "", *depths])


def citation(facts: CardFacts) -> str:
    """The sentence and the BibTeX with which this version of the data is cited."""
    where = "the archives that it is built from" if _is_built(facts) else "`data/`"
    return "\n".join(
        [
            f"The identifier is the SHA-256 of {where}, written as RFC 6920 says: other data has",
            "another identifier, and `moxin-lab cards check` finds one that is not of this data.",
            "",
            "```bibtex",
            bibtex(facts),
            "```",
        ]
    )


def bibtex(facts: CardFacts) -> str:
    """A `@misc` entry whose key ends in the first 8 digits of the content hash."""
    authors = " and ".join("{" + _tex(name) + "}" for name in facts.creators)
    fields = {
        "author": authors,
        "title": "{" + _tex(facts.title) + "}",
        "year": facts.published[:4],
        "date": facts.published,
        "version": facts.version,
        "note": f"Data card {_tex(facts.name)} of Moxin Lab, {facts.identifier}",
    }
    lines = [f"  {name:7} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{moxin_lab_{facts.name}_{facts.sha256[:8]},", *lines, "}"])


def _is_built(facts: CardFacts) -> bool:
    return [file.path for file in facts.files] == ["build.json"]


def _files(facts: CardFacts) -> str:
    if _is_built(facts):
        return f"text that a command builds from {facts.files[0].rows} packages"
    return f"{len(facts.files)} parquet file" + ("s" if len(facts.files) > 1 else "")


def _first_sentence(prose: str) -> str:
    line = prose.split("\n", 1)[0].strip()
    found = re.match(r"(.+?[.:])(?=\s[A-Z`*]|\s*$)", line)
    return (found[1] if found else line).rstrip(":").replace("|", "\\|")


def _minutes(text: str, headings: tuple[str, ...]) -> str:
    parts = re.split(r"(?m)^## +(.+?)\s*$", text)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    prose = " ".join(re.sub(r"(?s)```.*?```", " ", bodies.get(h, "")) for h in headings)
    prose = re.sub(r"(?m)^\|.*$", " ", prose)
    return f"{max(1, round(len(prose.split()) / WORDS_PER_MINUTE))} min"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _tex(text: str) -> str:
    return re.sub(r"([_&%#$])", r"\\\1", text)
