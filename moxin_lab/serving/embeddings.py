"""Embeddings: the mean of a text's last hidden states, of length 1.

Guarantees: a text's vector does not depend on the others of its request.
Out of scope: encoders that were trained to compare texts (`encoders.py`).
"""

import asyncio
import base64
import struct
import time
from typing import Any

from moxin_lab.serving.jobs import Event, Job
from moxin_lab.serving.loading import Served
from moxin_lab.serving.prompts import Limits, completion_prompts, event_error
from moxin_lab.serving.protocol import ApiError, CompletionRequest, EmbeddingRequest


class Batch:
    """The texts of one request as jobs. Raises ApiError for what cannot be embedded."""

    def __init__(self, served: Served, request: EmbeddingRequest, limits: Limits) -> None:
        width = served.model.config.hidden_size
        if request.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: this model's are {width}", param="dimensions")
        self._model, self._as_base64 = served.name, request.encoding_format == "base64"
        texts = CompletionRequest(model=request.model, prompt=request.input)
        prompts = completion_prompts(served, texts, limits, param="input")
        if len(prompts) > limits.max_jobs:
            raise ApiError(400, f"input: more than {limits.max_jobs} texts", param="input")
        longest = max(len(prompt.ids) for prompt, _ in prompts)
        if longest > limits.max_context:
            raise ApiError(
                400,
                f"input: {longest} tokens are more than {limits.max_context}",
                code="context_length_exceeded",
                param="input",
            )
        self._events: asyncio.Queue[tuple[Job, Event]] = asyncio.Queue()
        deadline = time.monotonic() + limits.seconds
        self.jobs = [
            Job(
                prompt.ids,
                0,
                lambda _: ("", False),
                pool=True,
                owner=self._events,
                deadline=deadline,
            )
            for prompt, _ in prompts
        ]

    async def answer(self) -> dict[str, Any]:
        """The answer's body. Raises ApiError where a text failed."""
        found: dict[Job, list[float]] = {}
        while len(found) < len(self.jobs):
            job, event = await self._events.get()
            if event.embedding is None:
                raise event_error(event)
            vector = event.embedding.double()
            found[job] = (vector / vector.norm().clamp_min(1e-12)).tolist()
        total = sum(len(job.prompt_ids) for job in self.jobs)
        return {
            "object": "list",
            "model": self._model,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._encoded(found[job])}
                for index, job in enumerate(self.jobs)
            ],
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }

    def _encoded(self, values: list[float]) -> list[float] | str:
        """Numbers, or little-endian float32 in base64, as the official client asks for them."""
        if not self._as_base64:
            return values
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
