"""The tokenizer of a GGUF file: the rule that the file names cuts a text, special tokens keep their
place, and a file that contradicts itself or is damaged is refused by name.
"""

from pathlib import Path

import gguf
import pytest
from tokenizers import pre_tokenizers

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import gguf_tokenizer
from moxin_lab.tokenizer import router

TOKENS = ["</s>", "<|im_start|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "11", "ĠĠ"]
MERGES = ["h e", "1 1", "Ġ Ġ"]


def write(
    path: Path,
    *,
    pre: str = "smollm",
    tokens: list[str] = TOKENS,
    merges: list[str] = MERGES,
    add_bos: bool = False,
    add_eos: bool = False,
    eos: int = 0,
) -> Path:
    """A file with a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["he", "ĠĠ", "1", "1", "2"]),
        ("gpt-2", ["he", "Ġ", "Ġ", "11", "2"]),
        ("tekken", ["he", "Ġ", "Ġ", "1", "1", "2"]),
    ],
)
def test_a_text_is_cut_by_the_rule_that_the_file_names(
    tmp_path: Path, pre: str, expected: list[str]
) -> None:
    tokenizer = gguf_tokenizer.tokenizer_of(write(tmp_path / "a.gguf", pre=pre))
    ids = tokenizer("he  112").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.decode(ids) == "he  112"


def test_the_lab_has_one_pattern_of_tekken() -> None:
    assert gguf_tokenizer.TEKKEN == router.PIECE_PATTERN


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_mark_in_a_text_is_a_mark_or_text_as_the_caller_says(
    tmp_path: Path, add_bos: bool
) -> None:
    tokenizer = gguf_tokenizer.tokenizer_of(write(tmp_path / "a.gguf", add_bos=add_bos))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 0)
    assert tokenizer("</s>").input_ids == [1] * add_bos + [0]
    tokenizer.backend_tokenizer.encode_special_tokens = True
    spelled = tokenizer.backend_tokenizer.encode("</s>", add_special_tokens=False)
    assert spelled.tokens == ["<", "/", "s", ">"]


@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, True), (True, True)])
def test_a_text_ends_as_the_file_says(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    file = write(tmp_path / "a.gguf", add_bos=add_bos, add_eos=add_eos)
    ids = gguf_tokenizer.tokenizer_of(file)("he").input_ids
    assert ids == [1] * add_bos + [TOKENS.index("he")] + [0] * add_eos


def test_a_file_that_contradicts_itself_or_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for changed, message in (
        ({"pre": "llama-bpe"}, "kind 'gpt2' with the rule 'llama-bpe'"),
        ({"tokens": [*TOKENS[:-1], "he"]}, "each token must stand once"),
        ({"tokens": TOKENS[:-1]}, "each token must stand once"),
        ({"merges": ["he 1"]}, "tokenizer.ggml.merges do not fit the tokens"),
        ({"eos": len(TOKENS)}, "eos_token_id is 261, and there are 261 tokens"),
    ):
        with pytest.raises(LabError, match=rf"a\.gguf: .*{message}"):
            gguf_tokenizer.tokenizer_of(write(path, **changed))
    content = write(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LabError, match=r"a\.gguf is not a whole GGUF file"):
        gguf_tokenizer.tokenizer_of(path)
    with pytest.raises(FileNotFoundError, match=r"none\.gguf is missing"):
        gguf_tokenizer.tokenizer_of(tmp_path / "none.gguf")
