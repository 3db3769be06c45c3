"""The tokenizers that the routed one is measured beside, each as a function from texts to numbers
of tokens.

- `joint_bpe`: one byte-level BPE of the same size, trained on the same text with the same pieces
  and no routing. The fair
  baseline for routing itself.
- `mistral`: Mistral 7B v0.1's SentencePiece model, 32,000 ids, which is what the released Moxin
  checkpoints ship. It was
  trained on other and far more text.

Does not: tell tokenizers apart by anything but counts; losslessness and ids are each tokenizer's
own affair.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from moxin_lab.tokenizer.learn import piece_splitter
from moxin_lab.tokenizer.routed import SPECIAL_TOKENS, RoutedTokenizer

CountTokens = Callable[[Sequence[str]], list[int]]


def joint_bpe(
    texts: Mapping[str, Sequence[str]],
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_bytes: int = 48,
) -> Tokenizer:
    """A byte-level BPE over all scripts together.

    max_token_bytes: 48 are the 16 characters of three bytes at which the experts stop, so Latin
    tokens may grow longer here.
    """
    joint = Tokenizer(BPE())
    joint.pre_tokenizer = pre_tokenizers.Sequence(
        [piece_splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
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
            f"the text fills only {joint.get_vocab_size()} of {vocab_size} ids of the joint BPE; give more text"
        )
    return joint


@cache
def mistral() -> SentencePieceProcessor:
    """Mistral 7B v0.1's tokenizer, from the file that the mistral-common package carries."""
    path = files("mistral_common") / "data" / "tokenizer.model.v1"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; install mistral-common in the version of requirements.lock"
        )
    return SentencePieceProcessor(model_file=str(path))


def count_with(tokenizer: RoutedTokenizer | Tokenizer | SentencePieceProcessor) -> CountTokens:
    """A function that counts the tokens of each text, none added."""
    if isinstance(tokenizer, RoutedTokenizer):
        return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]
    if isinstance(tokenizer, Tokenizer):
        return lambda texts: [
            len(e) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
    return lambda texts: [len(ids) for ids in tokenizer.encode(list(texts))]


def compare_released(repository: str) -> dict[str, int]:
    """Size of a released tokenizer on the model hub, and how many of its tokens Mistral v0.1 has
    too. Needs the network.
    """
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(repository).get_vocab()
    model = mistral()
    pieces = {model.id_to_piece(index) for index in range(model.vocab_size())}
    return {"size": len(vocabulary), "shared": len(pieces & vocabulary.keys())}
