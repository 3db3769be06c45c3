"""The tokenizer of a GGUF file, for a byte-level BPE: SmolLM2's files, and those we write.

    tokenizer = gguf_tokenizer.tokenizer_of(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))

A GGUF file cannot hold the rule that cuts a text into pieces, it names one (`tokenizer.ggml.pre`).
transformers (`gguf_file=...`) cuts by GPT-2's rule whatever the name. GPT-2's keeps digits together
and gives a number the last white space before it; SmolLM2's does neither. SmolLM2's vocabulary has
no token of two digits, so there the ids differ where several white spaces stand before a digit.

Guarantees: a text is cut by the rule that the file names; the ids are those of the tokenizer that
the file describes. A file that is cut, contradicts itself, or names a rule that is not in `rules()`
is refused by name.
Out of scope: SentencePiece files, which transformers reads; writing (`export/gguf_tokens.py`, and
`tokenizer/gguf_vocabulary.py` for the routed tokenizer alone).

Needs the package `gguf`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moxin_lab.lab.artifacts import LabError

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
BYTE_LEVEL = "gpt2"
"""llama.cpp's word for a byte-level BPE, as the value of `tokenizer.ggml.model`."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens, `enum llama_token_type` of llama.cpp."""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral's pattern (mistral-common, `tekken_240718.json`). The routed tokenizer's is the same; a
test holds the two equal, as neither package may import the other."""


def rules() -> dict[str, pre_tokenizers.PreTokenizer]:
    """llama.cpp's names of rules, with the same rule in `tokenizers`: GPT-2's pattern, the same
    after single digits are cut out (SmolLM), and Mistral's Tekken, which is the lab's.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        ),
        "tekken": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(TEKKEN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }


def read(path: Path) -> dict[str, Any]:
    """All that a GGUF file says of its tokenizer: values by key, without `PREFIX`.

    Raises FileNotFoundError, and LabError for a file that is cut.
    """
    import gguf

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return {
            name.removeprefix(PREFIX): field.contents()
            for name, field in gguf.GGUFReader(str(path)).fields.items()
            if name.startswith(PREFIX) or name == TEMPLATE
        }
    # What the package lets out for files that are cut or of another kind.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise LabError(f"{path} is not a whole GGUF file: {error}") from error


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file: a byte-level BPE with a rule of `rules()`.

    Control tokens that a text spells are control tokens, as with any tokenizer of transformers; set
    `backend_tokenizer.encode_special_tokens`, or use `plain_text.encode`, to have them as text.

    Raises as `read` and `make` do.
    """
    return make(read(path), path)


def make(values: Mapping[str, Any], path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of what `read` found in the file `path`.

    Raises LabError, which begins with `path`, for a tokenizer of another kind and for values that
    contradict each other.
    """
    keys = ("model", "pre", "tokens", "token_type", "merges")
    lacking = [PREFIX + key for key in keys if key not in values]
    if lacking or values["model"] != BYTE_LEVEL or values["pre"] not in rules():
        raise LabError(
            f"{path}: the tokenizer is of kind {values.get('model')!r} with the rule "
            f"{values.get('pre')!r}{', and lacks ' * bool(lacking)}{', '.join(lacking)}; read is a "
            f"byte-level BPE ({BYTE_LEVEL!r}) with one of the rules {', '.join(rules())}"
        )
    tokens: list[str] = values["tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    if not len(tokens) == len(vocab) == len(values["token_type"]):
        raise LabError(
            f"{path}: {len(tokens)} tokens, {len(vocab)} of them different, have "
            f"{len(values['token_type'])} types; each token must stand once and have one type"
        )
    try:
        made = Tokenizer(BPE(vocab, [tuple(merge.split(" ")) for merge in values["merges"]]))
    except Exception as error:  # the library raises bare Exception for a merge it cannot place
        raise LabError(f"{path}: {PREFIX}merges do not fit the tokens: {error}") from error
    made.pre_tokenizer, made.decoder = rules()[values["pre"]], decoders.ByteLevel()
    kinds = list(zip(tokens, values["token_type"], strict=True))
    made.add_special_tokens([token for token, kind in kinds if kind == CONTROL])
    made.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED]
    )
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = values.get(f"{key}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise LabError(
                f"{path}: {PREFIX}{key}_token_id is {index}, and there are {len(tokens)} tokens"
            )
        named[f"{name}_token"] = tokens[index]
    begins, ends = (
        [named[f"{name}_token"]]
        if values.get(f"add_{name}_token") and f"{name}_token" in named
        else []
        for name in ("bos", "eos")
    )
    if begins or ends:
        made.post_processor = processors.TemplateProcessing(
            single=[*begins, "$A", *ends],
            pair=[*begins, "$A", "$B:1", *ends],
            special_tokens=[(token, vocab[token]) for token in dict.fromkeys([*begins, *ends])],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **named
    )
    tokenizer.chat_template = values.get(TEMPLATE)
    return tokenizer
