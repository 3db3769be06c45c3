"""The cards `instructions` and `preferences` and their builders: the same bytes, right answers, and
nothing on both sides of the split.
"""

import dataclasses
import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab import scales
from moxin_lab.data import card_numbers, cards, instructions, preferences, sources, tasks
from moxin_lab.data.archives import ArchiveError
from moxin_lab.data.card_files import read_card
from moxin_lab.data.ngrams import NGRAM_TOKENS
from moxin_lab.data.split import is_heldout

SIDES = ("train", "test")
LANGUAGES = {"en", "zh", "ja", "ko"}
BENCHMARKS = os.environ.get("MOXIN_BENCHMARKS", "")


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[str, list[dict]]:
    folder = repository / "data_cards" / "instructions" / "data"
    return {side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in SIDES}


@pytest.fixture(scope="module")
def pairs(repository: Path) -> dict[str, list[dict]]:
    folder = repository / "data_cards" / "preferences" / "data"
    return {side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in SIDES}


def both(sides: dict[str, list[dict]]) -> list[dict]:
    return [*sides["train"], *sides["test"]]


def last(messages: list[dict]) -> str:
    return messages[-1]["content"]


# ---- the build


@pytest.mark.parametrize("name", ["instructions", "preferences"])
def test_rebuilding_from_the_cards_in_the_tree_gives_the_committed_bytes(
    name: str, repository: Path, tmp_path: Path
) -> None:
    released, out = repository / "data_cards" / name, tmp_path / "data_cards" / name
    out.mkdir(parents=True)
    record = sources.SOURCES[name]
    # Sampled files cannot be rebuilt.
    for file in record.sampled.keys() & {path.name for path in (released / "data").iterdir()}:
        sources.write_table(pq.read_table(released / "data" / file), out / "data" / file)
    for card in record.cards:
        out.with_name(card).symlink_to(released.with_name(card))
    text = (released / "README.md").read_text(encoding="utf-8")
    begin, end = (text.index(marker) for marker in card_numbers.MARKERS)
    (out / "README.md").write_text(
        text[:begin] + card_numbers.MARKERS[0] + "\n" + text[end:], encoding="utf-8"
    )
    messages: list[str] = []
    written = cards.rebuild(tmp_path, name, progress=messages.append)
    assert {path.name: path.read_bytes() for path in written} == {
        file: (released / "data" / file).read_bytes() for file in ("test.parquet", "train.parquet")
    }
    assert (out / "README.md").read_text(encoding="utf-8") == text
    assert messages == [f"building {out} from {', '.join(record.cards)}"]


def test_rows_other_than_recorded_are_refused_before_anything_is_written(
    repository: Path, tmp_path, monkeypatch
) -> None:
    table = pq.read_table(repository / "data_cards" / "instructions" / "data" / "test.parquet")
    monkeypatch.setattr(instructions, "tables", lambda _: {"test.parquet": table})
    monkeypatch.setitem(
        sources.SOURCES,
        "instructions",
        dataclasses.replace(sources.SOURCES["instructions"], rows_sha256="0" * 64),
    )
    with pytest.raises(ArchiveError, match="Nothing was written"):
        cards.rebuild(tmp_path, "instructions")
    assert not list(tmp_path.iterdir())


def test_the_two_cards_are_small_and_the_licence_of_each_row_is_in_the_licence_file(
    repository: Path, rows, pairs
) -> None:
    for name, sides in (("instructions", rows), ("preferences", pairs)):
        folder = repository / "data_cards" / name
        assert sum(path.stat().st_size for path in (folder / "data").glob("*.parquet")) < 2 * 2**20
        licences = {row["license"] for row in both(sides)}
        text = (folder / "LICENSE").read_text(encoding="utf-8")
        assert licences == set(re.findall(r'^Rows with license "(.+?)"', text, flags=re.MULTILINE))
        for card in instructions.CARDS:
            assert (repository / "data_cards" / card / "LICENSE").read_text(encoding="utf-8").strip(
                "\n"
            ) in text


@pytest.mark.parametrize(
    ("card", "licence"),
    [("help_pages", "MPL-2.0"), ("python_docs", "Python-2.0"), ("conversations", "BSD-3-Clause")],
)
def test_a_row_has_the_licence_of_its_card(card: str, licence: str, rows) -> None:
    found = {row["license"] for row in both(rows) if row["source_item"].startswith(f"{card}/")}
    assert found == {licence}
    generated = [row for row in both(rows) if row["source_item"].startswith("generated/")]
    assert {row["license"] for row in generated} == {instructions.GENERATED_LICENCE}
    assert {row["origin"] for row in generated} == {
        f"generated: {row['task']}" for row in generated
    }


# ---- rows


def test_every_conversation_alternates_and_ends_with_an_answer(rows) -> None:
    for row in both(rows):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) >= 2
        assert all(message["content"].strip() for message in row["messages"])
        assert (
            sum(len(message["content"]) for message in row["messages"])
            <= instructions.MAX_CHARACTERS
        )
    ids = [row["id"] for row in both(rows)]
    assert len(set(ids)) == len(ids)


def test_the_answer_of_a_verifiable_row_satisfies_its_verifier_and_another_rows_does_not(
    rows,
) -> None:
    by_task = defaultdict(set)
    for row in both(rows):
        if row["verifier"]:
            assert tasks.is_right(row["verifier"], last(row["messages"])), row["id"]
            by_task[row["task"], row["language"]].add(last(row["messages"]))
    assert {language for _, language in by_task} == LANGUAGES
    for (task, language), answers in by_task.items():
        assert len(answers) > 1, (
            f"{task} in {language} is always {answers}: a constant would be right"
        )


ENGLISH = {
    "larger": (r"Which is larger, (\d) or (\d)\?", lambda a, b: max(int(a), int(b))),
    "smaller": (r"Which is smaller, (\d) or (\d)\?", lambda a, b: min(int(a), int(b))),
    "parity": (r"Is (\d+) even or odd\?", lambda a: "odd" if a[-1] in "13579" else "even"),
    "add": (r"What is (\d+) \+ (\d+)\?", lambda a, b: int(a) + int(b)),
    "subtract": (r"What is (\d+) - (\d+)\?", lambda a, b: int(a) - int(b)),
    "multiply": (r"What is (\d+) × (\d+)\?", lambda a, b: sum(int(a) for _ in range(int(b)))),
    "next_number": (r"Which number follows (\d+)\?", lambda a: len("x" * int(a) + "x")),
    "to_binary": (r"Write (\d+) in binary:", lambda a: bin(int(a))[2:]),
    "first_item": (r"First item: (.+)", lambda a: a.split(" ")[0]),
    "last_item": (r"Last item: (.+)", lambda a: a.split(" ")[-1]),
    "repeat": (r"Repeat: (.+)", lambda a: a),
    "contains": (r"Is (\d) in (.+)\?", lambda a, b: "yes" if a in b else "no"),
    "sort_digits": (r"Sort in ascending order: (.+)", lambda a: " ".join(sorted(a.split()))),
    "count_items": (r"How many items: (.+)", lambda a: a.count(" ") + 1),
    "sort_words": (r"Sort alphabetically: (.+)", lambda a: " ".join(sorted(a.split()))),
    "first_letter": (r"First letter of (.+):", lambda a: re.match(".", a)[0]),
    "last_letter": (r"Last letter of (.+):", lambda a: re.search(".$", a)[0]),
    "reverse_word": (r"Spell backwards: (.+)", lambda a: "".join(reversed(a))),
    "count_letter": (
        r"How often does the letter (.) occur in (.+)\?",
        lambda a, b: len(b) - len(b.replace(a, "")),
    ),
    "weekday": (
        r"What day is (\d) days after (\w+)\?",
        lambda a, b: DAYS[(DAYS.index(b) + int(a)) % 7],
    ),
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def test_the_answer_of_every_english_task_follows_from_its_prompt_alone(rows) -> None:
    seen = Counter()
    for row in both(rows):
        if row["source_item"].startswith("generated/") and row["language"] == "en":
            pattern, solve = ENGLISH[row["task"]]
            operands = re.fullmatch(pattern, row["messages"][0]["content"])
            assert operands, row
            assert str(solve(*operands.groups())) == last(row["messages"]), row
            seen[row["task"]] += 1
    assert set(seen) == set(ENGLISH)


def test_a_calculation_has_one_answer_in_all_four_languages() -> None:
    answers = defaultdict(dict)
    for task in tasks.generate():
        if task.task in (
            "larger",
            "smaller",
            "add",
            "subtract",
            "multiply",
            "next_number",
            "to_binary",
        ):
            answers[task.task, *re.findall(r"\d+", task.prompt)][task.language] = task.answer
    assert len(answers) > 500
    for key, by_language in answers.items():
        assert set(by_language) == LANGUAGES, key
        assert len(set(by_language.values())) == 1, key


def test_every_kind_has_enough_rows_and_most_rows_are_short(rows) -> None:
    assert 3_000 <= len(rows["train"]) <= 10_000
    assert 1_000 <= len(rows["test"]) <= 3_000
    for side, least in (("train", 2_000), ("test", 500)):
        easy = [row for row in rows[side] if row["difficulty"] == 1]
        assert len(easy) >= least
        assert {row["language"] for row in easy} == LANGUAGES
        assert all(row["verifier"] for row in easy)
        found = {row["task"] for row in rows[side]}
        assert {"translate", "summarise", "find_heading", "document", "converse", *ENGLISH} <= found
        short = [
            row
            for row in rows[side]
            if sum(len(message["content"]) for message in row["messages"]) < 100
        ]
        assert len(short) > 0.75 * len(rows[side])
    assert {row["difficulty"] for row in both(rows)} == {1, 2, 3}


def test_texts_from_help_pages_are_in_the_stated_language(rows) -> None:
    scripts = {
        "zh": "[\u4e00-\u9fff]",
        "ja": "[\u3041-\u30ff\u4e00-\u9fff]",
        "ko": "[\uac00-\ud7a3]",
        "en": "[A-Za-z]",
    }
    targets = {name: code for names in instructions._NAMES.values() for code, name in names.items()}
    translated = Counter()
    for row in both(rows):
        if row["task"] == "translate":
            instruction, _, text = row["messages"][0]["content"].partition("\n")
            target = next(code for name, code in targets.items() if name in instruction)
            assert target != row["language"]
            assert re.search(scripts[row["language"]], text)
            assert re.search(scripts[target], last(row["messages"]))
            translated[row["language"], target] += 1
        if row["task"] == "identify_language":
            spoken = row["origin"].split("/")[1]
            assert last(row["messages"]) == instructions._NAMES[row["language"]][spoken]
    assert len(translated) == 12


def test_answers_from_the_documentation_quote_their_page(rows, repository: Path) -> None:
    pages = {
        row["page"]: set(re.findall(r"\w+", row["rst"].decode()))
        for row in read_card(repository / "data_cards" / "python_docs").to_pylist()
    }
    documents = [row for row in both(rows) if row["task"] in ("document", "question")]
    assert len(documents) > 400
    assert sum("/faq/" in row["source_item"] for row in documents) > 60
    for row in documents:
        answer = last(row["messages"])
        assert (
            set(re.findall(r"\w+", answer))
            <= pages[row["source_item"].removeprefix("python_docs/")]
        ), row
        assert not re.search(r":\w+:`|`|::|^\.\. ", answer), "markup"
        assert re.search(r"\?$|^How ", row["messages"][0]["content"])


# ---- the split


def test_no_source_item_is_on_both_sides(rows, pairs) -> None:
    for sides in (rows, pairs):
        items = {side: {row["source_item"] for row in sides[side]} for side in SIDES}
        assert not items["train"] & items["test"]
    assert {row["source_item"] for row in pairs["train"]} <= {
        row["source_item"] for row in rows["train"]
    }


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
def test_pages_that_stage_01_holds_out_are_in_test_only(scale: str, rows) -> None:
    share = scales.load(scale).data.heldout_share
    for side in SIDES:
        pages = {
            row["source_item"]
            for row in rows[side]
            if not row["source_item"].startswith("generated/")
        }
        held_out = {page for page in pages if is_heldout(page, share, seed=0)}
        if side == "train":
            assert not held_out
        elif scale != "full":  # at full scale stage 01 reads other sets, and holds out less
            assert held_out == pages
    known = {row["source_item"].split("/")[0] for row in rows["test"]}
    assert known == {"generated", *instructions.CARDS}


def test_source_items_are_the_page_keys_of_stage_01(rows, repository: Path) -> None:
    columns = {"help_pages": "page", "python_docs": "page", "conversations": "category"}
    known = {
        f"{card}/{page}"
        for card, column in columns.items()
        for page in read_card(repository / "data_cards" / card)[column].to_pylist()
    }
    assert {
        row["source_item"] for row in both(rows) if not row["source_item"].startswith("generated/")
    } <= known


def test_no_prompt_text_or_13_gram_of_test_occurs_in_train(rows) -> None:
    prompts = {row["messages"][0]["content"] for row in rows["test"]}
    grams: set[tuple[str, ...]] = set()
    test_texts: set[str] = set()
    for row in rows["test"]:
        for text in instructions.texts(row):
            grams |= instructions._ngrams(text)
            test_texts.add(text.casefold())
    assert len(grams) > 1_000
    for row in rows["train"]:
        assert row["messages"][0]["content"] not in prompts
        for text in instructions.texts(row):
            assert text.casefold() not in test_texts
            assert not grams & instructions._ngrams(text)


def test_generated_operands_of_a_test_row_are_in_no_train_row_of_any_task_or_language(rows) -> None:
    def operands(row: dict) -> frozenset[str] | None:
        found = re.findall(r"\d+", row["messages"][0]["content"])
        return (
            frozenset(found)
            if row["task"] in ("larger", "smaller", "first_item", "last_item", "repeat") and found
            else None
        )

    sides = {side: {operands(row) for row in rows[side]} - {None} for side in SIDES}
    assert len(sides["test"]) >= 20
    assert not sides["train"] & sides["test"]


@pytest.mark.skipif(
    not BENCHMARKS, reason="MOXIN_BENCHMARKS does not name a folder with the sets; .ci/run sets it"
)
def test_no_13_gram_of_a_benchmark_problem_occurs_in_the_set(rows) -> None:
    grams = {
        gram
        for row in both(rows)
        for text in instructions.texts(row)
        for gram in instructions._ngrams(text)
    }
    problems = [
        item["problem"]
        for file in Path(BENCHMARKS, "math").glob("*.json")
        for item in json.loads(file.read_text())
    ]
    assert len(problems) > 1_000
    assert not [
        problem for problem in problems if not grams.isdisjoint(instructions._ngrams(problem))
    ]


def test_decontamination_drops_what_shares_a_13_gram_a_text_or_a_prompt_and_nothing_else() -> None:
    def row(prompt: str, answer: str) -> dict:
        return instructions._row(
            "converse", "en", [prompt, answer], "o", "s", 3, "l", verified=False
        )

    words = [f"w{i}" for i in range(20)]
    test = [row("the question", " ".join(words))]
    shared = row("another", "before " + " ".join(words[3 : 3 + NGRAM_TOKENS]) + " after")
    short = row("a third", " ".join(words[3 : 2 + NGRAM_TOKENS]))
    assert instructions.decontaminate(
        [shared, short, row("The Question", "x"), row("y", "the question")], test
    ) == [short]


# ---- verifier and choices


@given(st.text(min_size=1).filter(lambda text: tasks.plain(text)))
def test_white_space_and_a_final_full_stop_do_not_make_an_answer_wrong(answer: str) -> None:
    verifier = tasks.exact(answer)
    assert json.loads(verifier) == {"kind": "exact", "answer": answer}
    assert tasks.is_right(verifier, f" {answer}\n")
    assert not tasks.is_right(verifier, f"{answer} x")


@pytest.mark.parametrize(
    ("answer", "given_answer", "right"),
    [
        ("42", "42.", True),
        ("42", "４２", True),
        ("42", " 42 。", True),
        ("42", "42..", False),
        ("42", "is 42", False),
        ("3", "", False),
    ],
)
def test_the_rule_of_the_exact_verifier(answer: str, given_answer: str, right: bool) -> None:
    assert tasks.is_right(tasks.exact(answer), given_answer) == right


def test_a_verifier_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no verifier of kind 'prose'"):
        tasks.is_right('{"kind": "prose"}', "x")


@given(st.text(), st.lists(st.integers(), unique=True), st.integers(0, 10))
def test_hashed_samples_are_subsets_without_repetition_and_do_not_change(
    key: str, items: list[int], count: int
) -> None:
    sample = tasks.hashed_sample(key, items, count)
    assert len(sample) == len(set(sample)) == min(count, len(items))
    assert set(sample) <= set(items)
    assert sample == tasks.hashed_sample(key, items, count)


# ---- preferences


def test_a_pair_has_the_answer_of_its_row_and_a_labelled_corruption_of_it(rows, pairs) -> None:
    for side in SIDES:
        originals = {row["id"]: row for row in rows[side]}
        for pair in pairs[side]:
            row = originals[pair["id"].removeprefix("pair-")]
            assert pair["prompt"] + pair["chosen"] == row["messages"]
            assert [message["role"] for message in pair["rejected"]] == ["assistant"]
            assert all(pair[name] == row[name] for name in row if name not in ("id", "messages"))
            assert tasks.plain(last(pair["rejected"])) != tasks.plain(last(pair["chosen"]))


def test_the_verifier_accepts_chosen_and_refuses_rejected(pairs) -> None:
    verifiable = [pair for pair in both(pairs) if pair["verifier"]]
    assert len(verifiable) > 1_000
    for pair in verifiable:
        assert tasks.is_right(pair["verifier"], last(pair["chosen"]))
        assert not tasks.is_right(pair["verifier"], last(pair["rejected"])), pair


def difference(pair: dict) -> int:
    return len(last(pair["rejected"])) - len(last(pair["chosen"]))


@pytest.mark.parametrize("side", SIDES)
def test_rejected_answers_are_longer_as_often_as_shorter(side: str, pairs) -> None:
    signs = Counter((difference(pair) > 0) - (difference(pair) < 0) for pair in pairs[side])
    assert signs[1] == signs[-1] > 200


def test_each_construction_changes_the_answer_as_described(pairs) -> None:
    by_kind = defaultdict(list)
    for pair in both(pairs):
        by_kind[pair["construction"].removeprefix("constructed corruption: ")].append(pair)
    for kind in ("repeated", "rambling"):
        assert by_kind[kind] and all(difference(pair) > 0 for pair in by_kind[kind])
        assert all(
            last(pair["rejected"]).startswith(last(pair["chosen"])) for pair in by_kind[kind]
        )
    for kind in ("dropped end", "truncated"):
        assert by_kind[kind] and all(difference(pair) < 0 for pair in by_kind[kind])
    for pair in by_kind["wrong number"]:
        assert abs(int(last(pair["rejected"])) - int(last(pair["chosen"]))) in (1, 2, 10)
    for pair in by_kind["other choice"]:
        assert last(pair["rejected"]) in pair["prompt"][-1]["content"]
    for pair in by_kind["neighbour's answer"]:
        assert pair["verifier"] is None
    described = re.findall(r"^    (\S+(?: \S+)*)  +\S", preferences.__doc__, flags=re.MULTILINE)
    assert set(by_kind) == set(described)


def test_some_answers_are_chosen_in_one_pair_and_rejected_in_another(pairs) -> None:
    """Otherwise the probability of an answer would suffice to rank a pair, without the prompt."""
    for task in ("parity", "contains", "larger", "identify_language"):
        chosen = {last(pair["chosen"]) for pair in pairs["test"] if pair["task"] == task}
        rejected = {last(pair["rejected"]) for pair in pairs["test"] if pair["task"] == task}
        assert len(chosen & rejected) >= 2
