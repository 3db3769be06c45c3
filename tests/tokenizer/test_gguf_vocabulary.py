"""Guarantees of the tokenizer as GGUF metadata: a file read back gives the ids of `encode` for any
text, its keys are those of the specification, and other or damaged files are refused by name.
"""

import gguf
import pytest
from hypothesis import given, settings

from moxin_lab.tokenizer import gguf_vocabulary
from moxin_lab.tokenizer.routed import SPECIAL_TOKENS
from tests.tokenizer.test_routed import HARD, MIXED, hard_cases


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "moxin.gguf"
    gguf_vocabulary.write(small, path)
    return path


@pytest.fixture(scope="module")
def read_back(file):
    return gguf_vocabulary.read(file)


@hard_cases
@settings(max_examples=300, deadline=None)
@given(text=MIXED)
def test_the_file_read_back_gives_the_same_ids(small, read_back, text):
    assert read_back.encode(text, add_special_tokens=False).ids == small.encode(text)


def test_the_keys_are_those_that_engines_read(small, file):
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "tekken"
    assert len(fields["tokenizer.ggml.tokens"]) == fields["llama.vocab_size"] == small.vocab_size
    assert fields["tokenizer.ggml.tokens"][:4] == list(SPECIAL_TOKENS)
    assert fields["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 3, 1]
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [
        1,
        2,
        3,
    ]
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_space_prefix"] is False


def rewritten(source, target, **changed):
    """The file with other values under some keys; None leaves a key out."""
    writer = gguf.GGUFWriter(str(target), "llama")
    for name, field in gguf.GGUFReader(source).fields.items():
        key = name.removeprefix("tokenizer.ggml.")
        if not name.startswith("tokenizer.ggml.") or changed.get(key, "") is None:
            continue
        value = changed.get(key, field.contents())
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_file_of_another_kind_is_refused_with_its_key(file, small, tmp_path):
    path = tmp_path / "other.gguf"
    same = gguf_vocabulary.read(rewritten(file, path))
    assert same.encode(HARD[4], add_special_tokens=False).ids == small.encode(HARD[4])
    tokens = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    types = [3, 3, 3, 3] + [1] * (len(tokens) - 4)
    for changed, message in (
        ({"pre": "llama-bpe"}, r"other.gguf: tokenizer.ggml.pre is 'llama-bpe'"),
        ({"model": "llama"}, r"other.gguf: tokenizer.ggml.model is 'llama'"),
        ({"merges": None}, r"other.gguf has no tokenizer.ggml.merges"),
        ({"token_type": types[:-1]}, r"have 799 types"),
        ({"tokens": [*tokens[:-1], tokens[-2]]}, r"800 tokens, 799 of them different"),
        ({"token_type": [3, *([1] * (len(tokens) - 1))]}, r"the control tokens are <image>;"),
        ({"merges": ["no merge_of_ours"]}, r"merges do not fit the tokens"),
        ({"merges": ["a b c"]}, r"merges do not fit the tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            gguf_vocabulary.read(rewritten(file, path, **changed))


def test_a_missing_or_cut_file_is_refused_with_its_name(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.gguf is missing"):
        gguf_vocabulary.read(tmp_path / "none.gguf")
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 100, len(content) // 2, len(content) - 300):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut.gguf"):
            gguf_vocabulary.read(cut)
