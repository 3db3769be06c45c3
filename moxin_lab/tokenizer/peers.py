"""The tokenizers that the routed one is compared with.

- `joint_bpe`: one byte-level BPE of the same size, trained on the same text with the same pieces
  and no routing. It is the baseline that isolates the effect of routing.
- `mistral`: the SentencePiece model of Mistral 7B v0.1 with 32,000 ids, which that of the released
  Moxin checkpoints resembles. It was trained on other text, and far more of it.
- `tekken`: Mistral's later tokenizer, four times as large.

Guarantees: all tokenizers are compared through one interface, a function from texts to numbers of
tokens.
Out of scope: comparing ids or testing losslessness.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moxin_lab.tokenizer.routed import SPECIAL_TOKENS, RoutedTokenizer, batches
from moxin_lab.tokenizer.router import piece_splitter

CountTokens = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text, special tokens not counted."""


def joint_bpe(
    texts: Mapping[str, Sequence[str]],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_bytes: int = 48,
    splitter: pre_tokenizers.PreTokenizer | None = None,
) -> Tokenizer:
    """A byte-level BPE over all scripts together, of exactly `vocab_size` ids.

    Args:
        max_token_bytes: 48 bytes are 16 characters of three bytes each. The experts stop at 16
            characters whatever their bytes, so Latin tokens may grow longer here.
        splitter: cuts what merges do not cross; the pieces of the routed tokenizer by default.
    Raises ValueError if the text does not fill the vocabulary.
    """
    joint = Tokenizer(BPE())
    joint.pre_tokenizer = pre_tokenizers.Sequence(
        [
            splitter or piece_splitter(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    joint.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        max_token_length=max_token_bytes,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )

    def batches() -> Iterator[Sequence[str]]:
        yield from texts.values()

    joint.train_from_iterator(batches(), trainer=trainer)
    joint.encode_special_tokens = True
    if joint.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text fills only {joint.get_vocab_size()} of the joint BPE's {vocab_size} ids; "
            "give more text"
        )
    return joint


@cache
def mistral() -> SentencePieceProcessor:
    """The tokenizer of Mistral 7B v0.1, from the file that the package mistral-common ships.

    Raises FileNotFoundError if the installed version of the package does not ship it.
    """
    path = files("mistral_common") / "data" / "tokenizer.model.v1"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; install the version of mistral-common in requirements.lock"
        )
    return SentencePieceProcessor(model_file=str(path))


@cache
def tekken() -> Tekkenizer:
    """Mistral's Tekken tokenizer of 131,072 ids, from the file that mistral-common ships."""
    return Tekkenizer.from_file(str(files("mistral_common") / "data" / "tekken_240718.json"))


def token_counter(
    tokenizer: RoutedTokenizer | Tokenizer | SentencePieceProcessor | Tekkenizer,
) -> CountTokens:
    """A function that counts the tokens of each text, without special tokens."""
    if isinstance(tokenizer, Tekkenizer):
        return lambda texts: [len(tokenizer.encode(text, bos=False, eos=False)) for text in texts]
    if isinstance(tokenizer, RoutedTokenizer):
        return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]
    if isinstance(tokenizer, Tokenizer):
        return lambda texts: [
            len(encoding)
            for batch in batches(texts)
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ]
    return lambda texts: [len(ids) for batch in batches(texts) for ids in tokenizer.encode(batch)]


RELEASED = "moxin-org/Moxin-7B-LLM"
"""The base checkpoint on the model hub, whose folder has a tokenizer."""


def load_with_transformers(folder: Path) -> PreTrainedTokenizerBase:
    """A saved tokenizer as users load it, without a network."""
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def compare_released(repository: str) -> dict[str, int]:
    """Size of a tokenizer on the model hub, and how many of its tokens Mistral v0.1 has too.

    Needs the network. Keys: size, shared.
    """
    vocabulary = AutoTokenizer.from_pretrained(repository).get_vocab()
    model = mistral()
    pieces = {model.id_to_piece(index) for index in range(model.vocab_size())}
    return {"size": len(vocabulary), "shared": len(pieces & vocabulary.keys())}
