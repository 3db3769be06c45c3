"""Token ids to text while they come: whole characters, stop strings, and the text of one token.

    text = TextStream(tokenizer, prompt_ids, stop=["\n\n"])
    piece = text.push(token_id)            # "" while a character or a stop string may be unfinished
    rest = text.finish()

Guarantees: the pieces joined are the text of all tokens, cut before the first stop string, however
the stop string is spread over tokens; no piece but the last ends within a character; the cost of a
token does not grow with the text.
Out of scope: which tokens end an answer (`scheduler.py`); bytes that are no UTF-8, of which some
decoders show more as U+FFFD when they see them all at once.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNFINISHED = "\ufffd"
CONTEXT_TOKENS = 6
"""Tokens of the prompt that the first piece is decoded after, so that a leading space is kept or
not as in the whole text; the number is vLLM's.
"""


class TextStream:
    """See the module's docstring. stop: strings that end the text, and are not part of it."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self._decoder = tokenizer.backend_tokenizer
        self._ids = list(context[-CONTEXT_TOKENS:])
        self._read = len(self._ids)  # the text of these has been given out
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that may be shown now that this token is there. `stopped` then says whether a
        stop string has been met.
        """
        self._ids.append(token_id)
        before, after = self._decode(self._ids[: self._read]), self._decode(self._ids)
        end = len(self._ids)
        if after.endswith(UNFINISHED):
            # At most the last three tokens can belong to a character that is still unfinished, so
            # bytes that are no text at all do not pile up.
            end -= 3
            decided = self._decode(self._ids[:end])
            after = decided if end > self._read and after.startswith(decided) else ""
        if len(after) <= len(before):
            return ""
        del self._ids[: self._read]
        self._read = end - self._read
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What is left: the bytes of an unfinished character as U+FFFD, and text that had been held
        back because a stop string could have begun with it.
        """
        if self.stopped:
            return ""
        before, after = self._decode(self._ids[: self._read]), self._decode(self._ids)
        self._read = len(self._ids)
        piece = self._release(after[len(before) :])
        rest, self._held = self._held, ""
        return piece + rest

    def _decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=True)

    def _release(self, new: str) -> str:
        """`new` and what was held back, up to where a stop string begins or might begin."""
        if not self._stop:
            return new
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with, fewer than all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class TokenTexts:
    """The text and the bytes of single tokens, for lists of log-probabilities."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The byte that each character of a byte-level piece stands for (GPT-2's alphabet:
        printable bytes stand for themselves, the others follow from U+0100 on).
        """
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(byte): byte for byte in printable} | {
            chr(256 + place): byte for place, byte in enumerate(others)
        }

    def text(self, token_id: int) -> str:
        """The text of a token within a text, special tokens spelled out; bytes that are no whole
        character as `bytes:\\xe4\\xb8`, as in OpenAI's completions.
        """
        if token_id not in self._texts:
            decode = self._tokenizer.backend_tokenizer.decode
            anchor = self._anchor
            whole = decode([anchor, token_id], skip_special_tokens=False)
            text = whole[len(decode([anchor], skip_special_tokens=False)) :]
            if UNFINISHED in text:
                raw = self._raw_bytes(token_id)
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if raw else text
            self._texts[token_id] = text
        return self._texts[token_id]

    def utf8(self, token_id: int) -> list[int]:
        """The bytes of a token's text."""
        text = self.text(token_id)
        raw = self._raw_bytes(token_id) if text.startswith("bytes:") else None
        return list(text.encode()) if raw is None else raw

    @cached_property
    def _anchor(self) -> int:
        """A token before which no decoder adds or removes a space: the letter a."""
        return self._tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids[-1]

    def _raw_bytes(self, token_id: int) -> list[int] | None:
        """The bytes that a piece stands for: of a byte-level piece, or of a fallback `<0xE4>`."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return None
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return [int(piece[3:5], 16)]
        if all(character in self._byte_of for character in piece):
            return [self._byte_of[character] for character in piece]
        return None
