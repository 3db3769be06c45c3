"""`moxin-lab serve --model DIR`: an OpenAI-compatible server on FastAPI and uvicorn.

    GET  /health  /metrics  /v1/models           POST /v1/completions  /v1/chat/completions
    GET  /  (a page to chat on)                  POST /v1/embeddings

    with serve_in_background(folder) as server:
        httpx.get(server.url + "/v1/models")

Guarantees: a request that cannot be served gets an error in OpenAI's shape before the model works:
400 for what is wrong in it, 401 without the key, 404 for another model, 413 and 408 for a body that
is too large or too slow, 429 when too many wait, 503 when the server is stopping or has failed, 504
when it took too long. A client that goes away frees its row. Nothing of a request is logged.
Without an API key the server binds to loopback addresses only (tests/serving/test_server.py).
Out of scope: TLS and users (put a proxy before it), more than one model.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import limits as guards
from moxin_lab.serving.app import Engine, Settings, create_app
from moxin_lab.serving.loading import load

BACKLOG = 4096
"""Connections that wait to be accepted."""


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=guards.PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=5,
        backlog=BACKLOG,
    )


def listen(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises LabError for an address that is taken or not this machine's,
    and for one beyond loopback without a key.
    """
    if not guards.is_loopback(settings.host) and not settings.api_key:
        raise LabError(
            f"--host {settings.host} can be reached from other machines: give --api-key, or set "
            "MOXIN_API_KEY"
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: what a client does not read is not held by the megabyte.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise LabError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    return listener


def serve(folder: Path, settings: Settings) -> int:
    """Serve until Ctrl-C. The address is taken before the model is loaded."""
    guards.raise_open_files()
    listener = listen(settings)
    # uvicorn raises KeyboardInterrupt again when it has ended.
    with contextlib.closing(listener), contextlib.suppress(KeyboardInterrupt):
        engine = Engine(load(folder, name=settings.name), settings)
        listener.listen(BACKLOG)  # whoever reads the next line may connect
        host, port = settings.host, listener.getsockname()[1]
        print(
            f"{engine.served.name}: http://{host}:{port} (a page to chat on, and /v1)", flush=True
        )
        uvicorn.Server(_config(create_app(engine), settings)).run(sockets=[listener])
    return 0


@dataclass(frozen=True)
class Running:
    """A server that runs in this process. url: without a slash at the end."""

    url: str
    model: str
    engine: Engine


@contextlib.contextmanager
def serve_in_background(model_dir: str | Path, port: int = 0, **options: Any) -> Iterator[Running]:
    """A server in a thread of this process, on a free port of 127.0.0.1 unless `port` names one.

    options: fields of `Settings`. It has stopped when the block ends. Raises LabError for a folder
    that holds no model and an address that is taken.
    """
    settings = Settings(port=port, **options)
    listener = listen(settings)
    with contextlib.closing(listener):
        engine = Engine(load(Path(model_dir), name=settings.name), settings)
        with running(engine, listener) as url:
            yield Running(url, engine.served.name, engine)


@contextlib.contextmanager
def running(engine: Engine, listener: socket.socket) -> Iterator[str]:
    """Serve an engine on a bound socket in a thread; gives the URL."""
    server = uvicorn.Server(_config(create_app(engine), engine.settings))
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="moxin-server", daemon=True
    )
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise LabError("the server did not start; its log says why")
            time.sleep(0.01)
        host, port = listener.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        server.should_exit = True
        thread.join()
