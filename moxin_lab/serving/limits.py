"""What keeps one client from harming the others: limits of time, size and origin.

Guarantees: a connection that sends no whole request head in `HEAD_SECONDS` is closed, as is one
whose client does not read its answer for `WRITE_SECONDS`; a body is refused once it is larger than
the limit or slower than `BODY_SECONDS`, before it is held in full; a page of another site cannot
use the server through a visitor's browser.
Out of scope: how many requests may wait (`scheduler.py`).
"""

import asyncio
import contextlib
import hmac
import ipaddress
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from moxin_lab.serving.protocol import ApiError

HEAD_SECONDS = 20.0
BODY_SECONDS = 30.0
WRITE_SECONDS = 30.0
OPEN_PATHS = ("/health", "/", "/chat.js", "/chat.css")
"""Served without the API key: whether it lives, and the page, which asks for the key."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which by itself waits forever: for the first request of a connection, and for
    a client to read.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The keep-alive timer stops at the first byte of the next request.
        if not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Not `close`, which would wait for the client to read what is still to be sent.
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def raise_open_files() -> None:
    """Let this process hold as many connections as the system allows: idle ones must not keep
    others out.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Bodies:
    """Reads bodies of at most `max_bytes`, and holds at most `max_total` bytes of them at once."""

    def __init__(self, max_bytes: int, max_total: int) -> None:
        self.max_bytes, self.max_total = max_bytes, max_total
        self._held = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as held until the block ends. Raises ApiError 413 for one that is
        too large, 408 for one that is too slow, 503 where others take all the room.
        """
        stated = request.headers.get("content-length", "0")
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._check(int(stated) if stated.isdigit() else 0)
                    async for part in request.stream():
                        self._add(body, part)
            except TimeoutError:
                message = f"the body did not come in {BODY_SECONDS:g} seconds"
                raise ApiError(408, message) from None
            yield bytes(body)
        finally:
            self._held -= len(body)

    def _add(self, body: bytearray, part: bytes) -> None:
        self._check(len(body) + len(part))
        if self._held + len(part) > self.max_total:
            raise ApiError(503, "too many large requests at once: try again later")
        self._held += len(part)
        body += part

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise ApiError(413, f"the body is larger than {self.max_bytes:,} bytes")


class Guard:
    """ASGI middleware: who may ask. On a loopback address, a `Host` that is not one is refused (a
    name that a hostile page points at this machine); a page of another origin is refused anywhere;
    with a key, everything but OPEN_PATHS needs it.
    """

    def __init__(self, app: Any, *, api_key: str | None, loopback: bool) -> None:
        self.app, self.api_key, self.loopback = app, api_key, loopback

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            error = self._refusal(Request(scope))
            if error is not None:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, request: Request) -> ApiError | None:
        host = request.headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.loopback and not is_loopback(name):
            return ApiError(403, f"this server answers to a loopback address, not to {host!r}")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return ApiError(403, f"a page of {origin} may not use this server")
        if self.api_key is None or request.url.path in OPEN_PATHS:
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), self.api_key.encode()):
            return None
        return ApiError(
            401,
            "a valid API key is needed: Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def error_response(error: ApiError) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse(error.body(), error.status, error.headers)


async def until_disconnect(request: Request) -> None:
    """Returns when the client has gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. lines: what to send, each a whole event. on_end: called once, however the
    stream ends: at its end, when the client goes away or stops reading, or by an error.
    """

    def __init__(
        self, request: Request, lines: AsyncIterator[bytes], on_end: Callable[[], None]
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        # A length of 0 would belong to the empty body of the base class.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._request, self._lines, self._on_end = request, lines, on_end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.ensure_future(until_disconnect(self._request))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            gone.cancel()
            sending.cancel()
            self._on_end()

    async def _send(self, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
