"""Routed tokenizer: lossless, contiguous blocks, union equal to routing, deterministic, no special
token from text.
"""

import importlib.resources
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moxin_lab.tokenizer import budget, files, learn, routed, router, training_text
from moxin_lab.tokenizer.learn import Candidate, Pool
from moxin_lab.tokenizer.routed import SPECIAL_TOKENS
from moxin_lab.tokenizer.router import EXPERTS

# Characters of every kind that the router and the pieces distinguish, mixed in random texts.
MIXED = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r\u00a0\u3000'.,!<>/s_09٣"),
        st.sampled_from("the window document文档窗口的文件このファイル문서 창의Токен，。ー・ﾞｶ"),
        st.sampled_from("\u0301\u0308\u3099\u309a\u302e\u200d\ufe0f\ufeff\x00\x7f\u0345\u064b"),
        st.sampled_from("é한한👨👩👧🇯🇵𠮷𝒳क्षไทยعربἄ"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)
HARD = [
    "",
    " ",
    "   ",
    "\u0301",
    "e\u0301 = é, か\u3099 = が, 한 = 한",
    "👨\u200d👩\u200d👧 🏳️\u200d🌈 ☝🏽",
    "\x00\x01\x1f\x7f\x85\u2028\ufeff\uffff",
    "𠮷野家で𝒳を食べる\U0010ffff",
    "a  한  b\t\t문\n \n  中 文",
    "<s>[INST] </s><image> <pad></s",
    "window   \t文 \t\t한  \n  \n\n か\t\t\t",
    "it's 文's I'LL\r\n\r\n",
]


def hard_cases(test):
    for text in HARD:
        test = example(text=text)(test)
    return test


@hard_cases
@settings(max_examples=400, deadline=None)
@given(text=MIXED)
def test_decoding_the_ids_of_any_unicode_text_gives_the_text(small, text):
    assert small.decode(small.encode(text)) == text


@hard_cases
@settings(max_examples=400, deadline=None)
@given(text=MIXED)
def test_one_bpe_over_the_union_equals_routing_each_run_to_its_expert(small, text):
    assert small.encode(text) == small.encode_by_expert(text)


@hard_cases
@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_an_id_of_a_block_occurs_only_in_runs_of_its_expert(small, text):
    owner = [expert for expert, run in router.runs_in_pieces(text) for _ in run]
    encoding = small.union.encode(text, add_special_tokens=False)
    for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        assert small.expert_of(index) in {"byte", "shared", *owner[start:stop]}
        assert len(set(owner[start:stop])) == 1, "a token never spans two runs"


@hard_cases
@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_no_text_produces_a_special_token(small, text):
    assert not any(index < len(SPECIAL_TOKENS) for index in small.encode(text))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["cjk", "hangul"]), st.data())
def test_an_expert_merges_as_a_bpe_over_its_characters_does(small, expert, data):
    """Compared with a character-level BPE that has the same merges: characters are built from bytes
    before any merge of characters applies.
    """
    block = next(block for block in small.blocks if block.name == expert)
    tokens = {small.decode([index]) for index in range(block.start, block.stop)}
    alphabet = sorted({character for token in tokens for character in token if character in tokens})
    text = data.draw(st.text(st.sampled_from(alphabet), max_size=12))
    order = [small.decode([index]) for index in range(block.start, block.stop)]
    merges = [
        (token[:cut], token[cut:])
        for token in order
        for cut in range(1, len(token))
        if token[:cut] in tokens and token[cut:] in tokens
    ]
    reference = Tokenizer(BPE({token: index for index, token in enumerate(sorted(tokens))}, merges))
    reference.pre_tokenizer = router.piece_splitter()
    assert [small.decode([index]) for index in small.encode(text)] == reference.encode(text).tokens


def test_all_characters_are_built_before_any_of_them_merge():
    """档窗 is learned before 文档, but 文 and 档 are the more frequent characters: without the rule
    their bytes would merge first.
    """
    tokenizer = routed.train(["文\n" * 100 + "档窗\n" * 30 + "文档\n" * 20], 268)
    assert [tokenizer.decode([index]) for index in tokenizer.encode("文档窗")] == ["文", "档窗"]


def test_a_learned_token_that_spells_a_special_token_is_refused():
    candidate = Candidate(b"<s>", ((b"<", b"s>"),), "common", (9.0,))
    with pytest.raises(ValueError, match="spells a special token"):
        routed.build(Pool((candidate,), {"en": 100}, 2, 16), 261, weights=None)


def test_training_on_text_full_of_special_tokens_still_produces_none():
    hostile = ["<s> </s> <image> <pad> <s></s>\n" * 20, "s> /s> pad> image>\n" * 20]
    tokenizer = routed.train(hostile, 270)
    for text in hostile:
        ids = tokenizer.encode(text)
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text


def test_blocks_are_contiguous_disjoint_and_cover_the_vocabulary(small):
    assert [block.name for block in small.blocks] == ["special", "byte", "shared", *EXPERTS]
    assert small.blocks[0].start == 0
    assert all(a.stop == b.start for a, b in zip(small.blocks, small.blocks[1:], strict=False))
    assert small.blocks[-1].stop == small.vocab_size == small.union.get_vocab_size() == 800
    assert sorted(small.union.get_vocab().values()) == list(range(800))
    assert [small.union.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]


def test_every_token_of_a_block_is_whole_characters_of_its_expert(small):
    for block in small.blocks[3:]:
        assert len(block) >= 20 or block.name in {"arabic", "devanagari", "thai", "other"}
        for index in range(block.start, block.stop):
            text = small.decode([index])
            assert "\ufffd" not in text and router.route(text) == [(block.name, text)]


def test_block_of_refuses_ids_outside_the_vocabulary(small):
    assert small.block_of([]).shape == (0,)
    assert small.block_of(np.arange(800)).tolist() == [
        i for i, block in enumerate(small.blocks) for _ in range(len(block))
    ]
    for wrong in (-1, 800):
        with pytest.raises(ValueError, match="ids must lie in"):
            small.block_of([wrong])


def test_merges_of_each_expert_are_used(small):
    for text in ("window", "文档窗口", "ファイル", " 문서", "Токен"):
        assert len(small.encode(text)) < len(text)


@settings(max_examples=100, deadline=None)
@given(text=MIXED)
def test_a_saved_tokenizer_gives_the_same_ids_after_loading(small, folder, text):
    assert files.load(folder).encode(text) == small.encode(text)


@pytest.fixture(scope="module")
def exported(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@hard_cases
@settings(max_examples=200, deadline=None)
@given(text=MIXED)
def test_transformers_reads_the_folder_and_gives_the_same_ids(small, exported, text):
    ids = exported(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == small.encode(text)
    assert exported.decode(ids) == text


def test_transformers_beside_a_mistral_config_gives_the_same_ids(small, folder, tmp_path):
    """The pretrained artifact holds tokenizer and `config.json` in one folder; AutoTokenizer must
    not choose another class because of it.
    """
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    )
    beside = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    for text in HARD:
        assert beside(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ] == small.encode(text)


def test_special_tokens_have_the_agreed_ids_and_only_bos_is_added(exported):
    assert [
        exported.convert_tokens_to_ids("<image>"),
        exported.bos_token_id,
        exported.eos_token_id,
        exported.pad_token_id,
    ] == [0, 1, 2, 3]
    assert set(exported.all_special_tokens) == set(SPECIAL_TOKENS)
    assert exported("<image>\nIn: window", add_special_tokens=False)["input_ids"][0] == 0
    plain = exported("window", add_special_tokens=False)["input_ids"]
    assert exported("window", add_special_tokens=True)["input_ids"] == [1, *plain]
    assert len(exported) == 800


def test_the_exported_folder_parses_special_tokens_unless_told_to_split_them(small, exported):
    text = "window</s>"
    assert exported(text, add_special_tokens=False)["input_ids"][-1] == exported.eos_token_id
    assert exported(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ] == small.encode(text)
    assert exported(text, add_special_tokens=False)["input_ids"][-1] == exported.eos_token_id, (
        "the flag must not persist"
    )


def test_saving_does_not_change_how_special_tokens_in_text_are_encoded(small, tmp_path):
    before = small.encode("</s>")
    files.save(small, tmp_path / "again")
    assert small.encode("</s>") == before == files.load(tmp_path / "again").encode("</s>")


def test_the_same_texts_give_the_same_bytes_in_any_process_and_with_any_number_of_threads(
    texts, folder, tmp_path
):
    script = (
        "import json, sys; from pathlib import Path\n"
        "from moxin_lab.tokenizer import files, routed\n"
        "texts = json.loads(Path(sys.argv[1]).read_text())\n"
        "files.save(routed.train(texts, 800, min_tokens_per_expert=20), Path(sys.argv[2]))"
    )
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    for threads in ("1", "2"):
        out = tmp_path / threads
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "texts.json"), str(out)],
            check=True,
            env=environment,
        )
        for file in sorted(folder.iterdir()):
            assert (out / file.name).read_bytes() == file.read_bytes(), (
                f"{file.name} with {threads} threads"
            )


def test_training_on_a_parquet_file_equals_training_on_its_documents(texts, small, tmp_path):
    rows = [
        {"language": language, "text": text}
        for language, documents in texts.items()
        for text in documents
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    again = routed.train(tmp_path / "train.parquet", 800, min_tokens_per_expert=20)
    assert again.union.to_str() == small.union.to_str()


def test_the_weight_of_a_language_does_not_depend_on_how_often_its_text_is_repeated(texts):
    def blocks(documents):
        return routed.train(documents, 600).blocks

    assert blocks({**texts, "en": texts["en"] * 5}) == blocks(texts)


def test_the_byte_limit_takes_the_same_documents_in_whatever_order_they_come(texts):
    kept = training_text.read_documents(texts, 300)
    again = training_text.read_documents(
        {name: documents[::-1] for name, documents in texts.items()}, 300
    )
    assert kept == again and list(kept) == sorted(texts)
    for language, documents in kept.items():
        assert 290 < sum(len(text.encode()) for text in documents) <= 300
        whole = texts[language]
        assert all(text in whole for text in documents[:-1])
        assert any(text.startswith(documents[-1]) for text in whole)


def test_the_byte_limit_loses_no_source_of_a_language(tmp_path):
    sizes = {"help_pages": 4000, "python_docs": 100, "conversations": 4}
    rows = [
        {"language": "en", "source": source, "text": f"{source} {number:05d} " + "x" * 100}
        for source, count in sizes.items()
        for number in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    kept = training_text.read_documents(tmp_path / "train.parquet", 20_000)["en"]
    per_source = {
        source: sum(len(text) for text in kept if text.startswith(source[:5])) for source in sizes
    }
    assert per_source["conversations"] >= 190 and per_source["python_docs"] >= 400
    assert 19_990 < sum(per_source.values()) <= 20_000


@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("languages", [None, ("zh", "ja")])
def test_the_shards_of_stage_01_give_the_text_that_one_table_of_them_gives(
    texts, tmp_path, limit, languages
):
    rows = [
        {"id": "d", "source": f"s{number % 3}", "language": language, "text": text, "page": "p"}
        for language, documents in texts.items()
        for number, text in enumerate(documents)
    ][::-1]
    table = pa.Table.from_pylist(rows)
    (tmp_path / "train").mkdir()
    for number, start in enumerate(range(0, len(rows), 7)):  # one language is in several shards
        pq.write_table(table.slice(start, 7), tmp_path / "train" / f"{number:05d}.parquet")
    shards = training_text.read_curated(tmp_path, limit, languages)
    assert shards == training_text.read_documents(table, limit, languages)
    assert list(shards) == sorted(languages or texts)


def test_the_byte_limit_loses_no_language_that_has_text():
    texts = {"en": ["a" * 20, "b"], "zh": ["", "文" * 20], "xx": [""]}
    assert training_text.read_documents(texts, 10) == {"en": ["a" * 10], "zh": ["文" * 3]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routed.train([], 300), "no text to train on"),
        (lambda: routed.train(["", ""], 300), "no text to train on"),
        (lambda: routed.train(["aaa bbb"], 5000), "cannot be filled"),
        (lambda: routed.train(["aaa bbb"], 200), "cannot be filled"),
        (
            lambda: routed.train({"a": ["aaa aaa ббб ббб ббб"]}, 261, min_tokens_per_expert=3),
            "only 1 are free",
        ),
    ],
)
def test_impossible_training_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_string_is_refused_as_a_list_of_documents():
    with pytest.raises(TypeError, match="list of documents"):
        routed.train("one text", 300)


def test_loading_another_folder_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        files.load(tmp_path)


def test_loading_refuses_blocks_that_do_not_match_the_vocabulary(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    experts = json.loads((tmp_path / "experts.json").read_text())
    experts["blocks"][-1]["stop"] += 1
    (tmp_path / "experts.json").write_text(json.dumps(experts))
    with pytest.raises(ValueError, match=r"experts\.json ends at id 801"):
        files.load(tmp_path)


def damaged(folder, target, name, change):
    """A copy of a tokenizer's folder in which one JSON file was changed."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    value = json.loads((target / name).read_text())
    change(value)
    (target / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("experts.json", lambda v: v["blocks"].reverse(), "has the blocks"),
        ("experts.json", lambda v: v["blocks"][4].update(start=500), "it must begin at"),
        ("experts.json", lambda v: v.update(format=1), "has format 1"),
        ("experts.json", lambda v: v["router"]["ranges"].pop("thai"), "another router"),
        ("experts.json", lambda v: v.pop("training"), "was not written by"),
        ("experts.json", lambda v: v["blocks"][0].pop("name"), "was not written by"),
        ("tokenizer.json", lambda v: v.update(normalizer={"type": "NFC"}), "has a normalizer"),
        ("tokenizer.json", lambda v: v["model"].update(merges=[["a", "zzz"]]), "cannot be read"),
        ("tokenizer.json", lambda v: v["model"]["vocab"].popitem(), r"tokenizer\.json"),
    ],
)
def test_a_file_that_was_changed_is_refused_with_its_name(folder, tmp_path, name, change, message):
    damaged(folder, tmp_path, name, change)
    with pytest.raises(ValueError, match=message) as refused:
        files.load(tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("name", ["experts.json", "tokenizer.json"])
def test_a_file_that_was_cut_is_refused_with_its_name(folder, tmp_path, name):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        files.load(tmp_path)


@pytest.mark.parametrize("copy", [lambda t: pickle.loads(pickle.dumps(t)), deepcopy])
def test_a_copy_reads_special_tokens_in_text_as_text(small, copy):
    assert copy(small).encode("<s></s>") == small.encode("<s></s>")


def test_a_worker_process_gives_the_same_ids(small):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(small.encode, "</s> 文").result() == small.encode("</s> 文")


@hard_cases
@settings(max_examples=300, deadline=None)
@given(text=MIXED)
def test_tiktoken_knows_ids_alone_and_gives_the_same(small, as_tiktoken, text):
    assert as_tiktoken.encode_ordinary(text) == small.encode(text)
    assert as_tiktoken.decode(small.encode(text)) == text


@pytest.fixture(scope="module")
def as_tiktoken(small, folder):
    return files.as_tiktoken(folder)


def test_tiktoken_reads_a_folder_that_was_written_anew(texts, small, tmp_path):
    for tokenizer in (small, routed.train(texts, 600)):
        files.save(tokenizer, tmp_path)
        ids = tokenizer.encode("The window of the document")
        assert files.as_tiktoken(tmp_path).encode_ordinary("The window of the document") == ids


def test_ids_are_ranks_where_two_pairs_spell_one_token():
    """aba can be ab+a or a+ba; the pair with the smaller ids goes first in both encoders."""
    tokenizer = routed.train(["ab " * 40 + "ba " * 30 + "aba " * 20 + "bab abab " * 10], 267)
    with tempfile.TemporaryDirectory() as name:
        files.save(tokenizer, Path(name))
        other = files.as_tiktoken(Path(name))
        for length in range(1, 9):
            for letters in itertools.product("ab", repeat=length):
                text = "".join(letters)
                assert other.encode_ordinary(text) == tokenizer.encode(text), text


def test_the_one_pattern_is_that_of_tekken_which_fast_encoders_know():
    described = json.loads(
        (importlib.resources.files("mistral_common") / "data/tekken_240718.json").read_text()
    )
    assert described["config"]["pattern"] == router.PIECE_PATTERN


def test_the_exported_file_has_one_split_and_the_bytes(folder):
    steps = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Split", "ByteLevel"]
    assert steps[0]["pattern"] == {"Regex": router.PIECE_PATTERN}


def test_the_words_that_answer_a_choice_are_single_tokens(texts):
    tokenizer = routed.train(texts, 830, required=routed.ANSWERS)
    for word in routed.ANSWERS:
        assert len(tokenizer.encode(word)) == 1, word
    assert len(tokenizer.encode("Answer: B")) < len("Answer: B")


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffc"])
def test_a_lone_surrogate_is_refused_with_its_place(small, text):
    for call in (lambda: small.encode(text), lambda: small.encode_batch(["fine", text])):
        with pytest.raises(ValueError, match=r"lone surrogate, U\+D[8F]"):
            call()


@settings(max_examples=400, deadline=None)
@example(text="a\n/b\n b\n\nc")
@example(text=";\n//\nx")
@given(text=st.text(st.sampled_from("ab \n\r/;文。\t"), max_size=40))
def test_a_long_text_is_cut_only_where_pieces_meet(small, text):
    parts = list(routed.segments(text, 3))
    assert "".join(parts) == text
    whole = small.union.encode(text, add_special_tokens=False).ids
    assert [index for part in parts for index in small.encode(part)] == whole


class Recorder:
    """Keeps how many characters each call of the library was given."""

    def __init__(self, union):
        self.union, self.sizes = union, []

    def encode_batch_fast(self, texts, **options):
        self.sizes.append(sum(map(len, texts)))
        return self.union.encode_batch_fast(texts, **options)


def test_many_texts_are_encoded_a_part_at_a_time_with_the_ids_of_each_alone(small, texts):
    many = [text for documents in texts.values() for text in documents] * 3_000
    recorder = Recorder(small.union)
    ids = replace(small, union=recorder).encode_batch(many)
    assert ids == [small.encode(text) for text in many[: len(many) // 3_000]] * 3_000
    longest = max(map(len, many))
    assert max(recorder.sizes) < routed.BATCH_CHARACTERS + longest
    assert sum(recorder.sizes) == sum(map(len, many)) > routed.BATCH_CHARACTERS


def test_every_token_is_reached_by_its_merges_however_small_the_vocabulary(texts):
    for size in (400, 600, 800):
        tokenizer = routed.train(texts, size, required=routed.ANSWERS[:8])
        for block in tokenizer.blocks[3:]:
            for index in range(block.start, block.stop):
                text = tokenizer.decode([index])
                if len(router.piece_splitter().pre_tokenize_str(text)) == 1:
                    assert tokenizer.encode(text) == [index]


@pytest.mark.parametrize("ids", [[800], [-1], [5, 99_999]])
def test_an_id_outside_the_vocabulary_is_not_decoded_in_silence(small, ids):
    with pytest.raises(ValueError, match="ids must lie in"):
        small.decode(ids)
    with pytest.raises(ValueError, match="ids must lie in"):
        small.expert_of(ids[-1])


def test_expert_of_agrees_with_the_blocks(small):
    for block in small.blocks:
        for index in {block.start, block.stop - 1} if len(block) else ():
            assert small.expert_of(index) == block.name


def test_weights_move_ids_to_the_languages_they_favour(texts):
    pool = learn.learn(texts, max_candidates=800, min_frequency=2, max_token_length=16)
    sizes = {}
    for factor in (0.5, 1.0, 3.0):
        weights = budget.weights(list(texts), ["ko"], factor)
        tokenizer = routed.build(pool, 450, weights=weights)
        sizes[factor] = {block.name: len(block) for block in tokenizer.blocks}["hangul"]
    assert sizes[0.5] < sizes[1.0] < sizes[3.0]


def test_a_vocabulary_is_learnt_from_the_languages_that_are_named():
    texts = {"en": ["one"], "zh": ["文"], "ru": ["слово"]}
    assert training_text.read_documents(texts, languages=("zh", "en")) == {
        "en": ["one"],
        "zh": ["文"],
    }
    with pytest.raises(ValueError, match="no document in ja; there are en, ru, zh"):
        training_text.read_documents(texts, languages=("en", "ja"))
