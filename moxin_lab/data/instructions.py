"""Instruction examples, built from other data cards and from task generators.

    conversations, python_docs, help_pages ---+
    generators of `tasks.py`, four languages -+--> examples
      --> split by source item --> decontaminated train and test --> instructions

`data_cards/instructions` (train.parquet, test.parquet), one row per example:

    id           string   unique over both files
    messages     list<struct<role: string, content: string>>: roles user and assistant in turn, the
                 last one assistant
    origin       string   the card and the item in it, or `generated: <task>`
    source_item  string   the key of the split; for rows from a card, stage 01's key of the page,
                 `<card>/<page>`
    task         string   what is asked, for example `identify_language`, `last_item`, `translate`
    language     string   en, zh, ja or ko: the language of the instruction
    difficulty   int64    1: closed and short, within reach of a tiny model; 2: harder; 3: open or
                 long
    verifier     string or null: a JSON object such as {"kind": "exact", "answer": "42"}; null if no
                 rule can decide
    license      string   SPDX identifier: the card's, or CDLA-Permissive-2.0 if generated

An `exact` verifier accepts an answer that equals `answer` after Unicode NFKC, without white space
at its ends and without one final `.` or `\u3002` (`tasks.is_right`).

Guarantees: the same cards give the same bytes; a source item is on one side of the split only; a
row of `test` comes from a page that stage 01 holds out (share 0.08, seed 0), or from operands that
no row of `train` has in any language; a row of `train` comes from no such page.
Out of scope: stage 01 with another seed, which holds out other pages (filter by `source_item`);
judging answers.
"""

import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from moxin_lab.data import tasks
from moxin_lab.data.card_files import read_card
from moxin_lab.data.ngrams import ngrams
from moxin_lab.data.packaged import INSTRUCTIONS_SCHEMA
from moxin_lab.data.split import is_heldout
from moxin_lab.data.tasks import LANGUAGES

CARDS = ("help_pages", "python_docs", "conversations")
HELDOUT_SHARE, HELDOUT_SEED = 0.08, 0
"""What stage 01 holds out at tiny and small scale with its default seed.

Full scale holds out a subset of these pages.
"""
GENERATED_TEST_SHARE = 0.2
GENERATED_LICENCE = "CDLA-Permissive-2.0"
MAX_CHARACTERS = 400
"""No row has more characters than this in all its messages together."""

_ROWS = {
    "identify_language": (220, 50),
    "translate": (180, 40),
    "summarise": (120, 30),
    "find_heading": (90, 25),
    "converse": (180, 40),
    "question": (200, 50),
    "document": (360, 120),
}
"""Most rows of a task per language: in train and in test."""
_GENERATED_ROWS = (45, 15)
"""The same for a generated task, per difficulty."""
_TRAIN_PAGES = 900
"""Number of help pages that train rows come from: enough for `_ROWS`, and a build in seconds."""
_NAMES = {
    "en": dict(zip(LANGUAGES, ("English", "Chinese", "Japanese", "Korean"), strict=True)),
    "zh": dict(zip(LANGUAGES, ("英语", "汉语", "日语", "韩语"), strict=True)),
    "ja": dict(zip(LANGUAGES, ("英語", "中国語", "日本語", "韓国語"), strict=True)),
    "ko": dict(zip(LANGUAGES, ("영어", "중국어", "일본어", "한국어"), strict=True)),
}
"""By language, its names for all languages."""
_PROMPTS = {
    "identify_language": {
        "en": "Which language is this?",
        "zh": "这是什么语言?",
        "ja": "これは何語?",
        "ko": "이것은 어느 언어?",
    },
    "translate": {
        "en": "Translate into {name}:",
        "zh": "翻译成{name}:",
        "ja": "{name}に訳す:",
        "ko": "{name}로 번역:",
    },
    "summarise": {
        "en": "Give this a title:",
        "zh": "为这段文字拟一个标题:",
        "ja": "次の文に題名を付ける:",
        "ko": "다음 글에 제목 붙이기:",
    },
    "find_heading": {
        "en": "Which heading fits, “{a}” or “{b}”?",
        "zh": "哪个标题合适,“{a}”还是“{b}”?",
        "ja": "合う見出しは「{a}」か「{b}」か?",
        "ko": "알맞은 제목은 “{a}”인가 “{b}”인가?",
    },
}
"""By task and language, the instruction: one line. The text that it is about follows on the next.
"""


# ---- examples from the cards


def examples(card_root: Path) -> Iterator[dict[str, Any]]:
    """All candidate rows, before the split and thinning.

    card_root: the folder `data_cards`. Raises `CardError`.
    """
    yield from _from_help_pages(read_card(card_root / "help_pages").to_pylist())
    yield from _from_python_docs(read_card(card_root / "python_docs").to_pylist())
    yield from _from_conversations(read_card(card_root / "conversations").to_pylist())
    for task in tasks.generate():
        origin = f"generated: {task.task}"
        messages = [task.prompt, task.answer]
        yield _row(
            task.task,
            task.language,
            messages,
            origin,
            task.source_item,
            task.difficulty,
            GENERATED_LICENCE,
        )


def _row(
    task: str,
    language: str,
    turns: list[str],
    origin: str,
    source_item: str,
    difficulty: int,
    licence: str,
    *,
    verified: bool = True,
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join([task, language, *turns]).encode()).hexdigest()
    return {
        "id": f"{task}-{language}-{digest[:12]}",
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ],
        "origin": origin,
        "source_item": source_item,
        "task": task,
        "language": language,
        "difficulty": difficulty,
        "verifier": tasks.exact(turns[-1]) if verified else None,
        "license": licence,
    }


Block = tuple[str, str, str]
"""An element of a help page: tag, id (equal in all translations), text."""

_BLOCK = re.compile(
    r'<(h[1-3]|p) id="([^"]+)"(?: class="paragraph")? dir="auto">(.*?)</\1>', re.DOTALL
)
_SWITCH = re.compile(r'class="switchinline"|hidden="true"|<img|class="embedded"')
_SCRIPTS = {
    "en": re.compile("[A-Za-z]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ja": re.compile("[\u3041-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7a3]"),
}

_FOREIGN = {"en": ("zh", "ja", "ko"), "zh": ("ja", "ko"), "ja": ("ko",), "ko": ("zh", "ja")}
"""Languages whose script must not occur in a text; Japanese itself uses Han characters."""


def _blocks(page: bytes) -> list[Block]:
    """Headings and plain paragraphs of a page, in order.

    Those that vary by operating system or contain an icon are omitted, and so are translations that
    lost a quotation mark.
    """
    content = page.decode("utf-8").partition('id="DisplayArea"')[2]
    blocks = []
    for tag, key, inner in _BLOCK.findall(content):
        if not _SWITCH.search(inner):
            text = " ".join(html.unescape(re.sub("<[^>]*>", "", inner)).split())
            if text and text.count("「") == text.count("」"):
                blocks.append((tag, key, text))
    return blocks


def _in_language(text: str, language: str) -> bool:
    """Whether a help text is in the language that its row states, that is, was translated.

    At least 30 % of its characters must be in the script that marks the language, and none in the
    script of another one.
    """
    if 10 * len(_SCRIPTS[language].findall(text)) < 3 * len(text):
        return False
    return not any(_SCRIPTS[other].search(text) for other in _FOREIGN[language])


def _from_help_pages(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows from all test pages and from `_TRAIN_PAGES` train pages, in every language."""
    names = sorted({row["page"] for row in rows})
    test = [page for page in names if in_test(f"help_pages/{page}")]
    train = tasks.hashed_sample("help pages", sorted(set(names) - set(test)), _TRAIN_PAGES)
    used = {*test, *train}
    pages: dict[str, dict[str, list[Block]]] = defaultdict(dict)
    for row in rows:
        if row["page"] in used:
            pages[row["page"]][row["language"]] = _blocks(row["html"])
    for page, blocks in sorted(pages.items()):
        item = f"help_pages/{page}"
        for language in LANGUAGES:
            translated = [block for block in blocks[language] if _in_language(block[2], language)]
            if translated:
                yield from _help_rows(item, page, language, translated, blocks)


def _help_rows(
    item: str, page: str, language: str, kept: list[Block], blocks: dict[str, list[Block]]
) -> Iterator[dict[str, Any]]:
    """The rows of one page in one language: at most one per task.

    kept: the page's blocks that are in the language. blocks: its blocks in all languages.
    """

    def example(
        task: str,
        spoken: str,
        instruction: str,
        block: Block,
        answer: str,
        difficulty: int,
        verified: bool,
    ) -> dict[str, Any]:
        origin = f"help_pages/{language}/{page}#{block[1]}"
        turns = [f"{instruction}\n{block[2]}", answer]
        return _row(task, spoken, turns, origin, item, difficulty, "MPL-2.0", verified=verified)

    short = [block for block in kept if 12 <= len(block[2]) <= 100]
    if short:
        block = tasks.hashed_sample(f"{item}/{language}/identify", short, 1)[0]
        spoken = LANGUAGES[tasks.hashed_integer(f"{item}/{language}/spoken", 4)]
        instruction = _PROMPTS["identify_language"][spoken]
        yield example(
            "identify_language", spoken, instruction, block, _NAMES[spoken][language], 1, True
        )
    target = tasks.hashed_sample(
        f"{item}/{language}/target", [other for other in LANGUAGES if other != language], 1
    )[0]
    translations = {key: text for _, key, text in blocks[target] if _in_language(text, target)}
    pairs = [block for block in kept if 4 <= len(block[2]) <= 120 and block[1] in translations]
    if pairs:
        block = tasks.hashed_sample(f"{item}/{language}/translate", pairs, 1)[0]
        instruction = _PROMPTS["translate"][language].format(name=_NAMES[language][target])
        yield example("translate", language, instruction, block, translations[block[1]], 3, False)
    if kept[0][0] == "h1" and len(kept) > 1 and kept[1][0] == "p" and len(kept[1][2]) >= 20:
        yield example(
            "summarise", language, _PROMPTS["summarise"][language], kept[1], kept[0][2], 3, False
        )
    headings = [text for tag, _, text in kept if tag in ("h2", "h3") and len(text) <= 60]
    under = [
        (a[2], b) for a, b in pairwise(kept) if a[2] in headings and b[0] == "p" and len(b[2]) >= 20
    ]
    if under and len(set(headings)) > 1:
        heading, block = tasks.hashed_sample(f"{item}/{language}/heading", under, 1)[0]
        others = sorted(set(headings) - {heading})
        both = tasks.hashed_sample(
            f"{item}/{language}/order",
            [heading, tasks.hashed_sample(f"{item}/other", others, 1)[0]],
            2,
        )
        instruction = _PROMPTS["find_heading"][language].format(a=both[0], b=both[1])
        yield example("find_heading", language, instruction, block, heading, 3, True)


_QUESTION = re.compile(r"^(\S.*\?|How .+)\n([-=~^'\"])\2{3,}\n+", re.MULTILINE)
_MODULE = re.compile(
    r"^\.\. module:: (\S+)\n(?:   :(?!synopsis)\w+:.*\n)*   :synopsis: (.+(?:\n {6,}\S.*)*)",
    re.MULTILINE,
)
_FUNCTION = re.compile(
    r"^\.\. function:: ([\w.]+)\(.*\)\n(?:   :\w+:.*\n| {14}\S.*\n)*\n"
    r"   ((?:\S.*\n)(?:   \S.*\n)*)",
    re.MULTILINE,
)
_ROLE = re.compile(
    r":[\w:+-]+:`(?:~(?:\w+\.)*|!)?([^`<]+?)(?:\s*<[^`>]+>)?`"  # a role
    r"|`([^`<]+?)\s*<[^`>]+>`_+"  # a link
    r"|``([^`]+)``"  # a literal
    r"|\*+([^*\s][^*]*)\*+"  # emphasis
)

_TARGETS = re.compile(r"\A(?:\.\. .*\n(?:[ ]+\S.*\n|\n)*)*")
"""Labels and index entries between a heading and its first paragraph."""


def _prose(rst: str) -> str | None:
    """The text of a reStructuredText paragraph without markup; None if it is no plain paragraph."""
    text = " ".join(
        _ROLE.sub(lambda match: next(group for group in match.groups() if group), rst).split()
    )
    return (
        None
        if text.startswith((".. ", "* ", "- ", ">>>")) or re.search(r"`|::|\|\w", text)
        else text
    )


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z)]\.)\s+(?=[A-Z])", text)[0]


def _from_python_docs(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Sections whose heading is a question, the purpose of modules and functions; English only."""
    for row in rows:
        source, rst = f"python_docs/{row['page']}", row["rst"].decode("utf-8")
        candidates: list[tuple[str, str, str | None]] = []
        for match in _QUESTION.finditer(rst):
            body = _TARGETS.sub("", rst[match.end() :])
            paragraph = _prose(body.split("\n\n")[0])
            candidates.append(("question", _prose(match[1]) or "", paragraph))
        module = ""
        for match in _MODULE.finditer(rst):
            module = match[1]
            question = f"What is the Python module {module} for?"
            candidates.append(("document", question, _prose(match[2])))
        for match in _FUNCTION.finditer(rst):
            name = match[1] if "." in match[1] or not module else f"{module}.{match[1]}"
            description = _prose(match[2])
            answer = description and _first_sentence(description)
            candidates.append(("document", f"What does the Python function {name} do?", answer))
        for task, question, answer in candidates:
            if question and answer and len(answer) >= 12 and not answer.endswith(":"):
                turns, origin = [question, answer], f"{source}#{question}"
                yield _row(task, "en", turns, origin, source, 3, "Python-2.0", verified=False)


def _from_conversations(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Prompt and first reply, or all turns if the file contains turns.

    The source item is the topic, as in stage 01.
    """
    for row in rows:
        turns = [turn.strip() for turn in row["conversation"]]
        # The corpus file `conversations` has successive turns, the others alternative replies.
        turns = turns[: len(turns) // 2 * 2] if row["category"] == "conversations" else turns[:2]
        if len(turns) >= 2 and all(turns):
            origin = f"conversations/{row['language']}/{row['category']}#{row['index']}"
            item = f"conversations/{row['category']}"
            yield _row(
                "converse", row["language"], turns, origin, item, 3, "BSD-3-Clause", verified=False
            )


# ---- split, thinning, decontamination


def in_test(source_item: str) -> bool:
    """Whether a source item belongs to the test side.

    Pages of a card do if stage 01 holds them out; of the operands of generated tasks, a fifth does.
    """
    share = GENERATED_TEST_SHARE if source_item.startswith("generated/") else HELDOUT_SHARE
    return is_heldout(source_item, share, HELDOUT_SEED)


def texts(row: dict[str, Any]) -> list[str]:
    """The texts of a row that must not occur on both sides of the split.

    They are its messages without the instruction, and without the answer if the row has a verifier,
    since that is one of a few words. Generated rows have none.
    """
    if row["origin"].startswith("generated: "):
        return []
    contents = [message["content"] for message in row["messages"]]
    if row["task"] in _PROMPTS:
        contents[0] = contents[0].partition("\n")[2]
    return contents[:-1] if row["verifier"] else contents


def decontaminate(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of train that share no prompt, no text and no 13-gram of a text with test."""
    prompts = {row["messages"][0]["content"] for row in test}
    test_texts = {text.casefold() for row in test for text in texts(row)}
    grams = {gram for row in test for text in texts(row) for gram in _ngrams(text)}
    return [
        row
        for row in train
        if row["messages"][0]["content"] not in prompts
        and not any(
            text.casefold() in test_texts or not grams.isdisjoint(_ngrams(text))
            for text in texts(row)
        )
    ]


# Not `ngrams.tokens`, which keeps Korean words whole and cuts at underscores: with it 12 of the
# 9,399 rows of train would be others, and the published card's hash is that of this rule. The
# languages of the card (en, zh, ja, ko) write no combining marks.
_TOKEN = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W぀-ヿ㐀-䶿一-鿿가-힯]+")


def _ngrams(text: str) -> set[tuple[str, ...]]:
    return set(ngrams(_TOKEN.findall(text.lower())))


def split(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits rows into (train, test).

    Each prompt of a task is kept once, rows above `MAX_CHARACTERS` are dropped, train is
    decontaminated, and each task is thinned. The order is that of a hash of the id.
    """
    seen: set[tuple[str, str, str]] = set()
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in rows:
        contents = [message["content"] for message in row["messages"]]
        key = (row["task"], row["language"], contents[0])
        if key not in seen and sum(map(len, contents)) <= MAX_CHARACTERS:
            seen.add(key)
            sides[in_test(row["source_item"])].append(row)
    for side in sides:
        side.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    # Decontaminated against all rows of the test side, before thinning: evaluation on stage 01's
    # held-out pages reads more of them than `test` contains.
    return _thinned(decontaminate(*sides), 0), _thinned(sides[1], 1)


def _thinned(rows: list[dict[str, Any]], side: int) -> list[dict[str, Any]]:
    """The first rows of each task, difficulty and language.

    Generated tasks of difficulty 1 keep all rows. side: 0 for train, 1 for test.
    """
    counts: Counter[tuple[str, int, str]] = Counter()
    kept = []
    for row in rows:
        key = (row["task"], row["difficulty"], row["language"])
        easy = row["origin"].startswith("generated: ") and row["difficulty"] == 1
        if easy or counts[key] < _ROWS.get(row["task"], _GENERATED_ROWS)[side]:
            counts[key] += 1
            kept.append(row)
    return kept


def tables(card_root: Path) -> dict[str, pa.Table]:
    """The tables of `data_cards/instructions` by file name, from the cards under `card_root`.

    Raises `CardError`.
    """
    train, test = split(examples(card_root))
    return {
        "test.parquet": pa.Table.from_pylist(test, schema=INSTRUCTIONS_SCHEMA),
        "train.parquet": pa.Table.from_pylist(train, schema=INSTRUCTIONS_SCHEMA),
    }
