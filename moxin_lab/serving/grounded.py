"""Chat answers from a knowledge base: `moxin-lab serve --index DIR`.

    last message -> retrieval -> weak? -> "no answer found", and the model is not asked
                              -> the model reads the paragraphs -> its text is checked -> sources

The answer has OpenAI's shape and one field more, `sources`. Since a text that its paragraphs do not
bear out is taken back, it is sent when it is whole, in one chunk if the client streams.

Guarantees: those of `answers.py`; a client that knows nothing of sources gets a plain answer.
Out of scope: earlier messages of the conversation, which are not searched for; images.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moxin_lab.serving import answers
from moxin_lab.serving.index import open_index
from moxin_lab.serving.protocol import ApiError, ChatMessage, ChatRequest

Complete = Callable[[ChatRequest], Any]
"""An awaitable body of a chat completion for a request that does not stream."""


class Knowledge:
    """An open index. Raises LabError for a folder that holds none."""

    def __init__(self, folder: Path) -> None:
        self._index = open_index(folder)

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    async def answer(
        self, request: ChatRequest, nothing: dict[str, Any], complete: Complete
    ) -> dict[str, Any]:
        """The body of a chat completion with `sources`, each with number, document, title,
        headings, paragraph and text. nothing: the body where the model is not asked.

        Raises ApiError for what an answer with sources has not: images, several choices,
        log-probabilities.
        """
        self._check(request)
        question = request.messages[-1].text
        try:
            grounding = await asyncio.to_thread(answers.ground, self._index, question)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from error
        if grounding is None:
            return _with(nothing, answers.Answer(answers.NO_ANSWER, False, ()))
        messages = [ChatMessage.model_validate(message) for message in grounding.messages]
        body = await complete(request.model_copy(update={"messages": messages, "stream": False}))
        text = body["choices"][0]["message"]["content"]
        return _with(body, answers.conclude(grounding, text))

    def _check(self, request: ChatRequest) -> None:
        refused = {
            "n": (request.n or 1) > 1,
            "logprobs": bool(request.logprobs),
            "prompt_logprobs": request.prompt_logprobs is not None,
            "messages": any(message.images for message in request.messages)
            or request.messages[-1].role != "user",
        }
        for param, is_given in refused.items():
            if is_given:
                raise ApiError(
                    400,
                    f"{param}: an answer with sources is one text, to a user's last message, "
                    "without images and log-probabilities; serve without --index for these",
                    param=param,
                )


def _with(body: dict[str, Any], answer: answers.Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {**body["choices"][0], "message": message}
    return {**body, "choices": [choice], "sources": [asdict(source) for source in answer.sources]}


async def as_chunks(body: dict[str, Any], *, usage: bool) -> AsyncIterator[dict[str, Any]]:
    """A whole chat completion as the objects of a stream."""
    choice = body["choices"][0]
    delta = {"role": "assistant", "content": choice["message"]["content"]}
    head = {**body, "object": "chat.completion.chunk"}
    del head["usage"]
    part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": choice["finish_reason"]}
    yield {**head, "choices": [part], **({"usage": None} if usage else {})}
    if usage:
        yield {**head, "choices": [], "usage": body["usage"]}
