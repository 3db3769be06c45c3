"""Pieces of a stream are whole characters and add up; a stop string is found however it is cut."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moxin_lab.serving.text import TextStream, TokenTexts
from tests.posttraining.examples import make_tokenizer

BYTES = make_tokenizer()


def sentencepiece_like():
    """Pieces that begin with a space, and bytes as a last resort, as in Mistral's tokenizer."""
    pieces = ["<unk>", "<s>", "</s>", "▁a", "a", "▁the", "the", "▁", "ç"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


SPACES = sentencepiece_like()


def stream(tokenizer, ids, context=(), stop=()):
    """The pieces of a stream, up to a stop string."""
    text = TextStream(tokenizer, context, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces


def whole(tokenizer, context, ids):
    """The text of ids after a context."""
    decode = tokenizer.backend_tokenizer.decode
    before = decode(list(context), skip_special_tokens=True)
    return decode([*context, *ids], skip_special_tokens=True)[len(before) :]


@given(st.text())
def test_any_text_comes_in_whole_characters(text):
    pieces = stream(BYTES, BYTES(text)["input_ids"])
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


@given(st.lists(st.integers(0, 258), max_size=40))
def test_bytes_that_are_no_text_add_up_to_what_the_tokenizer_makes_of_them(ids):
    assert "".join(stream(BYTES, ids)) == BYTES.backend_tokenizer.decode(ids)


def test_bytes_that_are_no_text_do_not_pile_up():
    text = TextStream(BYTES)
    shown = sum(len(text.push(3 + 200)) for _ in range(100))
    assert shown > 90


PIECES = st.integers(3, 8).map(lambda token: [token])
CHARACTERS = st.characters(codec="utf-8").map(lambda one: [9 + byte for byte in one.encode()])


@given(st.lists(PIECES | CHARACTERS, max_size=9), st.lists(st.integers(3, 8), min_size=1))
def test_a_leading_space_is_kept_as_in_the_whole_text(parts, context):
    ids, context = [token for part in parts for token in part], context[-6:]
    assert "".join(stream(SPACES, ids, context)) == whole(SPACES, context, ids)


@given(
    st.text(alphabet="ab\n三"),
    st.lists(st.text(alphabet="ab\n三", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text, stops):
    pieces = stream(BYTES, BYTES(text)["input_ids"], stop=stops)
    found = [text.find(stop) for stop in stops if stop in text]
    shown = "".join(pieces)
    if not found:
        assert shown == text
    else:
        # A stop string ends the text where it ends, so one that begins earlier may end later.
        assert text.startswith(shown) and not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_the_text_and_bytes_of_single_tokens():
    texts = TokenTexts(BYTES)
    ids = BYTES("a 三")["input_ids"]
    assert [texts.text(token) for token in ids[:3]] == ["a", " ", "bytes:\\xe4"]
    assert b"".join(bytes(texts.utf8(token)) for token in ids) == "a 三".encode()
    assert texts.text(2) == "</s>"
    spaces = TokenTexts(SPACES)
    assert [spaces.text(token) for token in (3, 4, 5, 8)] == [" a", "a", " the", "ç"]
    assert spaces.text(9 + 0xE4) == "bytes:\\xe4" and spaces.utf8(9 + 0xE4) == [0xE4]
