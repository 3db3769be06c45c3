"""Requests of OpenAI's protocol to jobs of the scheduler, and their events to answers.

    call = Call(served, request, limits)          # raises ApiError before any work
    scheduler.submit(call.jobs)                   # call.events: what `deliver` puts there
    async for chunk in call.chunks(): ...         # what a streaming client gets
    body = await call.answer()                    # or all of it at once

Guarantees: the chunks of a stream put together are the answer without streaming; with `echo` and
`logprobs` a completion has an entry for each token of the prompt, the first of them null, and for
each new token, the end token included; log-probabilities are the model's own, before temperature
and top-p.
Out of scope: HTTP, and a client that goes away (`server.py`).
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from moxin_lab.serving.jobs import Event, Job, TokenScore
from moxin_lab.serving.loading import Prompt, Served
from moxin_lab.serving.prompts import Limits, event_error, new_tokens
from moxin_lab.serving.protocol import ApiError, ChatRequest, CompletionRequest
from moxin_lab.serving.text import TextStream, TokenTexts

LOWEST = -9999.0
"""Stands for the log-probability of what cannot be, which JSON has no number for."""


@dataclass
class Choice:
    """One completion of a request. length: characters given out, an echoed prompt included."""

    index: int
    job: Job
    prompt_text: str
    length: int = 0
    began: bool = False


class Call:
    """A completion request of either kind, as jobs. prompts: each with the text that `echo`
    repeats.
    """

    def __init__(
        self,
        served: Served,
        request: CompletionRequest | ChatRequest,
        limits: Limits,
        *,
        texts: TokenTexts,
        prompts: list[tuple[Prompt, str]],
    ) -> None:
        self.request, self.texts = request, texts
        self.is_chat = isinstance(request, ChatRequest)
        self.events: asyncio.Queue[tuple[Job, Event]] = asyncio.Queue()
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created, self.model = int(time.time()), served.name
        self.began = time.monotonic()
        self.first_token_after: float | None = None
        num_choices = request.n or 1
        if len(prompts) * num_choices > limits.max_jobs:
            raise ApiError(
                400,
                f"{len(prompts)} prompts with n {num_choices} are more than {limits.max_jobs} "
                "completions of one request: send several",
            )
        self.prompt_tokens = sum(len(prompt.ids) for prompt, _ in prompts)
        self.choices = [
            Choice(
                place * num_choices + number,
                self._job(served, prompt, limits, number),
                text,
            )
            for place, (prompt, text) in enumerate(prompts)
            for number in range(num_choices)
        ]
        self._choice_of = {choice.job: choice for choice in self.choices}

    @property
    def jobs(self) -> list[Job]:
        return [choice.job for choice in self.choices]

    def _job(self, served: Served, prompt: Prompt, limits: Limits, number: int) -> Job:
        request = self.request
        text = TextStream(served.tokenizer, prompt.ids, request.stops)

        def accept(token_id: int) -> tuple[str, bool]:
            piece = text.push(token_id)
            return piece, text.stopped

        if isinstance(request, ChatRequest):
            logprobs = (request.top_logprobs or 0) if request.logprobs else None
        else:
            logprobs = request.logprobs
        prompt_logprobs = request.prompt_logprobs
        if isinstance(request, CompletionRequest) and request.echo and logprobs is not None:
            prompt_logprobs = max(prompt_logprobs or 0, logprobs)
        return Job(
            prompt.ids,
            new_tokens(request, len(prompt.ids), limits),
            accept,
            finish=text.finish,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            # Choices of one request differ, and the same request gives the same ones again.
            seed=None if request.seed is None else (request.seed % 2**64, number),
            end_ids=frozenset() if request.ignore_eos else served.end_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            embed=prompt.embed,
            patch_ids=served.patch_ids,
            deadline=self.began + limits.seconds,
            owner=self.events,
        )

    # ---------------------------------------------------------------------------------------------
    # answers

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The objects of a stream; usage last, if it was asked for. Raises ApiError."""
        options = self.request.stream_options
        usage = options is not None and options.include_usage
        more = {"usage": None} if usage else {}
        async for choice in self._parts():
            yield {**self._head(chunk=True), "choices": [choice], **more}
        if usage:
            yield {**self._head(chunk=True), "choices": [], "usage": self.usage()}

    async def answer(self) -> dict[str, Any]:
        """The whole answer. Raises ApiError."""
        merged: dict[int, dict[str, Any]] = {}
        async for part in self._parts():
            index = part["index"]
            if index not in merged:
                merged[index] = part
            else:
                _merge(merged[index], part, "delta" if self.is_chat else None)
        choices = [merged[index] for index in sorted(merged)]
        if self.is_chat:
            for choice in choices:
                choice["message"] = {**choice.pop("delta"), "refusal": None}
        return {**self._head(chunk=False), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, each once, and of all completions."""
        new = sum(max(0, job.read - len(job.prompt_ids)) for job in self.jobs)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
        }

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    async def _parts(self) -> AsyncIterator[dict[str, Any]]:
        """Choices as they come, each with what is new. Raises ApiError where one failed."""
        open_jobs = len(self.choices)
        while open_jobs:
            job, event = await self.events.get()
            if event.finish in ("error", "timeout", "cancelled"):
                raise event_error(event)
            open_jobs -= event.finish is not None
            if self.first_token_after is None and event.prompt_scores is None:
                self.first_token_after = time.monotonic() - self.began
            choice = self._choice_of[job]
            if self.is_chat:
                if (part := self._chat_part(choice, event)) is not None:
                    yield part
            else:
                for part in self._completion_parts(choice, event):
                    yield part

    # Chat.

    def _chat_part(self, choice: Choice, event: Event) -> dict[str, Any] | None:
        delta: dict[str, Any] = {} if choice.began else {"role": "assistant"}
        content = event.text
        if not choice.began or content:
            delta["content"] = content
        part = {
            "index": choice.index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": event.finish,
        }
        if event.score is not None:
            part["logprobs"] = {"content": [self._chat_entry(event.score)], "refusal": None}
        if event.prompt_scores is not None:
            part["prompt_logprobs"] = self._prompt_logprobs(event.prompt_scores)
        elif choice.began and not content and event.score is None and event.finish is None:
            return None  # a part of a character, or what may be a stop string
        choice.began = True
        return part

    def _chat_entry(self, score: TokenScore) -> dict[str, Any]:
        def entry(token_id: int, value: float | None) -> dict[str, Any]:
            return {
                "token": self.texts.text(token_id),
                "logprob": _finite(value),
                "bytes": self.texts.utf8(token_id),
            }

        top = [entry(token_id, value) for token_id, value in score.top]
        return {**entry(score.token_id, score.log_prob), "top_logprobs": top}

    # Completions.

    def _completion_parts(self, choice: Choice, event: Event) -> list[dict[str, Any]]:
        """What a completion's event shows; the prompt first where it is echoed."""
        request = self.request
        assert isinstance(request, CompletionRequest)
        parts = []
        if not choice.began and request.echo:
            part = self._part(choice, choice.prompt_text)
            if event.prompt_scores is not None and request.logprobs is not None:
                part["logprobs"] = self._echoed(choice, event.prompt_scores)
            choice.length = len(choice.prompt_text)
            parts.append(part)
        if event.prompt_scores is not None and request.prompt_logprobs is not None:
            part = self._part(choice, "")
            part["prompt_logprobs"] = self._prompt_logprobs(event.prompt_scores)
            parts.append(part)
        choice.began = True
        if event.text or event.score is not None or event.finish is not None:
            part = self._part(choice, event.text, event.finish)
            if event.score is not None and request.logprobs is not None:
                part["logprobs"] = self._completion_entries([event.score], [choice.length])
            choice.length += len(event.text)
            parts.append(part)
        return parts

    def _part(self, choice: Choice, text: str, finish: str | None = None) -> dict[str, Any]:
        return {"text": text, "index": choice.index, "logprobs": None, "finish_reason": finish}

    def _echoed(self, choice: Choice, scores: tuple[TokenScore, ...]) -> dict[str, Any]:
        """Entries of the prompt's tokens, with their places in its text."""
        offsets, length = [], 0
        for score in scores:
            offsets.append(min(length, len(choice.prompt_text)))
            text = self.texts.text(score.token_id)
            length += 0 if text.startswith("bytes:") else len(text)
        return self._completion_entries(scores, offsets)

    def _completion_entries(self, scores: Any, offsets: list[int]) -> dict[str, Any]:
        tops: list[dict[str, float] | None] = []
        for score in scores:
            if score.log_prob is None:
                tops.append(None)
                continue
            top: dict[str, float] = {}
            # Two tokens may have one text; the likelier one then stands for both.
            for token_id, value in (*score.top, (score.token_id, score.log_prob)):
                text = self.texts.text(token_id)
                top[text] = max(top.get(text, float("-inf")), _finite(value) or 0.0)
            tops.append(top)
        return {
            "tokens": [self.texts.text(score.token_id) for score in scores],
            "token_logprobs": [_finite(score.log_prob) for score in scores],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _prompt_logprobs(self, scores: tuple[TokenScore, ...]) -> list[Any]:
        """vLLM's form: null or {token id: {logprob, decoded_token}}, the prompt's token first."""
        entries: list[Any] = []
        for score in scores:
            if score.log_prob is None:
                entries.append(None)
                continue
            pairs = dict([(score.token_id, score.log_prob), *score.top])
            entries.append(
                {
                    str(token_id): {
                        "logprob": _finite(value),
                        "decoded_token": self.texts.text(token_id),
                    }
                    for token_id, value in pairs.items()
                }
            )
        return entries


def _merge(into: dict[str, Any], part: dict[str, Any], nested: str | None) -> None:
    """Add a later part of a choice to what there is of it."""
    texts, name = (into[nested], "content") if nested else (into, "text")
    more = part[nested] if nested else part
    texts[name] = texts.get(name, "") + more.get(name, "")
    into["finish_reason"] = part["finish_reason"]
    if "prompt_logprobs" in part:
        into["prompt_logprobs"] = part["prompt_logprobs"]
    if part["logprobs"] is None:
        return
    if into["logprobs"] is None:
        into["logprobs"] = part["logprobs"]
        return
    for key, values in part["logprobs"].items():
        if values is not None:
            into["logprobs"][key] += values


def _finite(value: float | None) -> float | None:
    return None if value is None else max(value, LOWEST)
