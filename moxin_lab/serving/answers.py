"""Answers from a knowledge base, each with the paragraphs that it stands on.

    with open_index(DIR) as index:
        result = answer(index, "How do I insert a table?")             # quotes a paragraph
        result = answer(index, question, model)                        # words of a model

    question -> retrieval -> weak?  -> "no answer found"
                          -> no model: the paragraph that shares most with the question, quoted
                          -> model: numbered paragraphs and the question -> text with [1], [2] ...
                             -> text that its paragraphs do not bear out -> "no answer found"

`model` is any function from chat messages to text, so this works with the server's scheduler
(`serve --index`), with a folder in this process, or with a test's own function. A server that
streams calls the two halves: `ground` before, `conclude` after.

Guarantees: every number in brackets names a paragraph that was shown to the model; an answer that
is found has at least one citation; no answer is made up where retrieval is weak; paragraphs are
data in the prompt, and one that spells a role marker or a number in brackets is defused.
Out of scope: whether a cited paragraph is true.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving.index import Index
from moxin_lab.serving.retrieval import COVERAGE, Hit, is_weak, search
from moxin_lab.serving.terms import question_terms, terms

NO_ANSWER = "no answer found"
PASSAGES = 5
"""Passages that an answer may stand on."""
MAX_PROMPT_BYTES = 3_600
"""UTF-8 bytes of all paragraphs of a prompt, about 1,000 tokens."""
SUPPORT = 0.5
"""Share of an answer's terms that the cited paragraphs must hold, our choice."""
INSTRUCTION = (
    "Answer the question in its language, from the numbered paragraphs alone. After each "
    "statement put the number of its paragraph in brackets, as [1]. If they do not answer it, say: "
    f"{NO_ANSWER}."
)
_CITED = re.compile(r"\[(\d{1,3})\]")

Message = dict[str, str]
Model = Callable[[list[Message]], str]


@dataclass(frozen=True)
class Source:
    """A paragraph that an answer may cite. number: in brackets; paragraph: in its document, from 1;
    headings: those it stands under.
    """

    number: int
    document: str
    title: str
    headings: tuple[str, ...]
    paragraph: int
    text: str


@dataclass(frozen=True)
class Grounding:
    """What a question is answered from: the sources, the best first, and the prompt of a model."""

    question: str
    sources: tuple[Source, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """text: the answer, or NO_ANSWER. sources: those that it cites, none if it is not found."""

    text: str
    found: bool
    sources: tuple[Source, ...]


def answer(
    index: Index, question: str, model: Model | None = None, *, passages: int = PASSAGES
) -> Answer:
    """The answer to a question, by a model or, without one, as a quotation.

    Raises ValueError for an empty question.
    """
    grounding = ground(index, question, passages=passages)
    if grounding is None:
        return Answer(NO_ANSWER, False, ())
    if model is None:
        return quote(grounding)
    return conclude(grounding, model(list(grounding.messages)))


def ground(
    index: Index, question: str, *, passages: int = PASSAGES, coverage_needed: float = COVERAGE
) -> Grounding | None:
    """The sources for a question and the prompt about them; None where retrieval is weak.

    coverage_needed: see `retrieval.is_weak`. Raises ValueError for an empty question.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    hits = search(index, question, passages)
    if is_weak(index, question, hits, coverage_needed=coverage_needed):
        return None
    sources = _sources(index, hits)
    return Grounding(question, sources, tuple(_prompt(question, sources)))


def quote(grounding: Grounding) -> Answer:
    """The source that holds most of the question's terms, as the answer; the earlier of equals."""
    asked = set(question_terms(grounding.question))
    best = max(grounding.sources, key=lambda one: (len(asked & set(terms(one.text))), -one.number))
    return Answer(f"{best.text} [{best.number}]", True, (best,))


def conclude(grounding: Grounding, text: str) -> Answer:
    """A model's text as an answer: numbers that name no source are taken out, and a text without
    any gets the number of the source that it shares most terms with.

    The answer is NO_ANSWER where the model says so, or where its sources hold less than SUPPORT of
    its terms.
    """
    known = {source.number: source for source in grounding.sources}
    text = _CITED.sub(lambda match: match[0] if int(match[1]) in known else "", text).strip()
    said = set(terms(_CITED.sub("", text)))
    if not said or NO_ANSWER in text.casefold():
        return Answer(NO_ANSWER, False, ())
    numbers = list(dict.fromkeys(int(number) for number in _CITED.findall(text)))
    if not numbers:
        best = max(grounding.sources, key=lambda one: (len(said & _held([one])), -one.number))
        numbers, text = [best.number], f"{text} [{best.number}]"
    cited = tuple(known[number] for number in numbers)
    if len(said & _held(cited)) < SUPPORT * len(said):
        return Answer(NO_ANSWER, False, ())
    return Answer(text, True, cited)


def chat_model(folder: Path, max_new_tokens: int) -> Model:
    """A model folder as the `model` of `answer`, greedy. Raises LabError for one that is none."""
    from moxin_lab.serving.terminal import TextModel

    if not (folder / "config.json").is_file():
        raise LabError(f"{folder} has no config.json, so it is not a model")
    try:
        model = TextModel(folder, max_new_tokens, 0.0)
    except (OSError, ValueError) as error:
        raise LabError(f"{folder} cannot be loaded: {error}") from error
    return lambda messages: model.answer(messages, lambda piece: None)


def format_text(result: Answer) -> str:
    """An answer with its sources for the terminal."""
    lines = [result.text]
    for source in result.sources:
        place = " › ".join(source.headings)
        lines.append(f"[{source.number}] {source.document}, paragraph {source.paragraph}: {place}")
    return "\n".join(lines)


def _held(sources: Sequence[Source]) -> set[str]:
    return {
        word for source in sources for word in terms(f"{' '.join(source.headings)} {source.text}")
    }


def _sources(index: Index, hits: Sequence[Hit]) -> tuple[Source, ...]:
    """The paragraphs of the hits, the best hit's first, as many as a prompt may hold."""
    sources: list[Source] = []
    room = MAX_PROMPT_BYTES
    for hit in hits:
        for number, text in index.paragraphs(hit.found):
            if len(text.encode()) > 2 * len(hit.found.text.encode()):
                text = hit.found.text  # a part of a long table or text
            room -= len(text.encode())
            if room < 0 and sources:
                return tuple(sources)
            found = hit.found
            place = (found.document, found.title, found.headings, number)
            sources.append(Source(len(sources) + 1, *place, text))
    return tuple(sources)


def _prompt(question: str, sources: Sequence[Source]) -> list[Message]:
    parts = []
    before = None
    for source in sources:
        if (source.document, source.headings) != before:
            parts.append(_defused(" › ".join(source.headings)))
            before = (source.document, source.headings)
        parts.append(f"[{source.number}] {_defused(source.text)}")
    body = "\n".join(parts)
    return [{"role": "user", "content": f"{INSTRUCTION}\n\n{body}\n\nQuestion: {question}"}]


def _defused(text: str) -> str:
    """Text of a document that can be no citation and no border of a turn."""
    return _CITED.sub(r"(\1)", text).replace("<|", "< |").replace("</s>", "< /s>")
