"""The server's application: its engine and its endpoints, on FastAPI.

Guarantees: see `server.py`; each request that is taken is given up when its client goes away.
Out of scope: sockets and threads (`server.py`), what an answer looks like (`completions.py`).
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from moxin_lab.serving import embeddings as vectors
from moxin_lab.serving import limits as guards
from moxin_lab.serving import protocol
from moxin_lab.serving.completions import Call
from moxin_lab.serving.grounded import Knowledge, as_chunks
from moxin_lab.serving.jobs import Busy, Event, Job, Stopped
from moxin_lab.serving.loading import Served
from moxin_lab.serving.metrics import Metrics
from moxin_lab.serving.prompts import Limits, chat_prompt, completion_prompts
from moxin_lab.serving.protocol import ApiError
from moxin_lab.serving.scheduler import Scheduler
from moxin_lab.serving.text import TokenTexts

PAGE = Path(__file__).parent / "chat_page"
PAGE_FILES = {"/": "index.html", "/chat.js": "chat.js", "/chat.css": "chat.css"}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
DEFAULT_CONTEXT = 4096
"""Most tokens of prompt and completion, where nothing else is said; memory grows with it."""


@dataclass(frozen=True)
class Settings:
    """How a server serves. max_context: default DEFAULT_CONTEXT or the model's positions.
    max_tokens: new tokens of one completion (default: the context). max_body: bytes (default: 4
    MiB, or 24 MiB for a model that sees). seconds: of a request, waiting included. index: a folder
    of `moxin-lab index` that chat answers come from.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    name: str | None = None
    max_context: int | None = None
    max_tokens: int | None = None
    max_rows: int = 16
    max_waiting: int = 256
    prefill_chunk: int | None = None
    max_body: int | None = None
    seconds: float = 300.0
    index: Path | None = None


class Engine:
    """A loaded model, its scheduler, and what the endpoints share."""

    def __init__(self, served: Served, settings: Settings) -> None:
        positions = served.model.config.max_position_embeddings
        context = settings.max_context or min(DEFAULT_CONTEXT, positions)
        self.served, self.settings = served, settings
        self.scheduler = Scheduler(
            served.model,
            deliver=self._deliver,
            max_context=context,
            max_rows=settings.max_rows,
            max_waiting=settings.max_waiting,
            prefill_chunk=settings.prefill_chunk,
        )
        self.limits = Limits(
            context, settings.max_tokens or context, settings.seconds, settings.max_waiting
        )
        max_body = settings.max_body or (4 if served.vlm is None else 24) * 2**20
        self.bodies = guards.Bodies(max_body, 8 * max_body)
        self.decoding = asyncio.Semaphore(2)  # images opened at once, which takes memory
        self.knowledge = None if settings.index is None else Knowledge(settings.index)
        self.texts = TokenTexts(served.tokenizer)
        self.metrics = Metrics(self.scheduler)
        self.created = int(time.time())
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The scheduler works as long as the application does."""
        self._loop = asyncio.get_running_loop()
        self.scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.scheduler.stop)
            if self.knowledge is not None:
                self.knowledge.close()

    def _deliver(self, events: list[tuple[Job, Event]]) -> None:
        assert self._loop is not None
        # The loop has closed where the process is ending and nobody listens any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_hand_out, events)

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs. Raises ApiError 429 and 503."""
        try:
            self.scheduler.submit(jobs)
        except Busy as error:
            raise ApiError(429, str(error), code="busy", headers={"retry-after": "1"}) from None
        except Stopped as error:
            raise ApiError(503, str(error), code="stopped", headers={"retry-after": "5"}) from None

    def cancel(self, jobs: list[Job]) -> None:
        """End what has not ended."""
        for job in jobs:
            if not job.done:
                self.scheduler.cancel(job)

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for another model."""
        if name != self.served.name:
            raise ApiError(
                404,
                f"the model {name[:200]!r} does not exist; this server has {self.served.name!r}",
                code="model_not_found",
                param="model",
            )


def _hand_out(events: list[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.owner.put_nowait((job, event))


def create_app(engine: Engine) -> FastAPI:
    """The application. Its lifespan starts and stops the scheduler."""
    app = FastAPI(lifespan=engine.running, docs_url=None, redoc_url=None, openapi_url=None)
    settings = engine.settings
    app.add_middleware(
        guards.Guard, api_key=settings.api_key, loopback=guards.is_loopback(settings.host)
    )
    app.add_middleware(_Counted, metrics=engine.metrics)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return guards.error_response(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        return guards.error_response(ApiError(error.status_code, f"{where}: {error.detail}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return guards.error_response(ApiError(500, "the server met an error of its own"))

    @app.get("/health")
    async def health() -> Response:
        failure = engine.scheduler.failure
        state = {"status": "ok" if failure is None else failure}
        return JSONResponse(state, 200 if failure is None else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        content, kind = engine.metrics.page()
        return PlainTextResponse(content, media_type=kind)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(engine)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        engine.check_model(name)
        return _model(engine)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        async with engine.bodies.read(request) as body:
            asked = protocol.parse(protocol.CompletionRequest, body)
        engine.check_model(asked.model)
        if asked.best_of is not None and asked.best_of != (asked.n or 1):
            raise ApiError(400, "best_of: only the value of n is served", param="best_of")
        prompts = await asyncio.to_thread(completion_prompts, engine.served, asked, engine.limits)
        call = Call(engine.served, asked, engine.limits, texts=engine.texts, prompts=prompts)
        return await _respond(engine, request, call)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        async with engine.bodies.read(request) as body:
            asked = protocol.parse(protocol.ChatRequest, body)
            engine.check_model(asked.model)
            if engine.knowledge is not None:
                return await _with_sources(engine, engine.knowledge, request, asked)
            call = await _chat_call(engine, asked)
        return await _respond(engine, request, call)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        async with engine.bodies.read(request) as body:
            asked = protocol.parse(protocol.EmbeddingRequest, body)
        engine.check_model(asked.model)
        batch = await asyncio.to_thread(vectors.Batch, engine.served, asked, engine.limits)
        engine.submit(batch.jobs)
        return JSONResponse(await _or_gone(engine, request, batch.jobs, batch.answer()))

    for path, file in PAGE_FILES.items():
        app.get(path)(_page(PAGE / file))
    return app


def _page(path: Path) -> Callable[[], Any]:
    async def page() -> Response:
        return FileResponse(path, headers=PAGE_HEADERS)

    return page


def _model(engine: Engine) -> dict[str, Any]:
    """A model as `/v1/models` lists it; `max_model_len` is vLLM's, `vision` says if it sees."""
    return {
        "id": engine.served.name,
        "object": "model",
        "created": engine.created,
        "owned_by": "moxin-lab",
        "max_model_len": engine.limits.max_context,
        "vision": engine.served.vlm is not None,
    }


async def _chat_call(engine: Engine, asked: protocol.ChatRequest) -> Call:
    """A chat request as a call, which does not hold its images any more."""
    async with engine.decoding:
        prompt = await asyncio.to_thread(chat_prompt, engine.served, asked, engine.limits)
    asked = asked.model_copy(update={"messages": []})
    return Call(engine.served, asked, engine.limits, texts=engine.texts, prompts=[(prompt, "")])


async def _with_sources(
    engine: Engine, knowledge: Knowledge, request: Request, asked: protocol.ChatRequest
) -> Response:
    """A chat answer from the knowledge base, whole or as a stream of one chunk."""

    async def complete(grounded: protocol.ChatRequest) -> dict[str, Any]:
        call = await _chat_call(engine, grounded)
        engine.submit(call.jobs)
        return await _or_gone(engine, request, call.jobs, call.answer())

    nothing = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": engine.served.name,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
    body = await knowledge.answer(asked, nothing, complete)
    if not asked.stream:
        return JSONResponse(body)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return guards.EventStream(request, _lines(as_chunks(body, usage=usage)), lambda: None)


async def _respond(engine: Engine, request: Request, call: Call) -> Response:
    """Run a call and answer it, as a stream or at once."""
    engine.submit(call.jobs)
    if call.request.stream:

        def end() -> None:
            engine.cancel(call.jobs)
            engine.metrics.first_token(call.first_token_after)

        return guards.EventStream(request, _lines(call.chunks()), end)
    answer = await _or_gone(engine, request, call.jobs, call.answer())
    engine.metrics.first_token(call.first_token_after)
    return JSONResponse(answer)


async def _or_gone(engine: Engine, request: Request, jobs: list[Job], work: Any) -> Any:
    """The result of `work`, unless the client goes away: then its jobs end."""
    gone = asyncio.ensure_future(guards.until_disconnect(request))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has gone")
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        engine.cancel(jobs)


async def _lines(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    """A stream's events. An error after its beginning is an event too: the status is sent."""
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except ApiError as error:
        yield _event(error.body())
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


class _Counted:
    """ASGI middleware that counts requests by path and status and times them."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.request(scope["path"], status, time.monotonic() - began)
