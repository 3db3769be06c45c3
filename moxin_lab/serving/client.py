"""A question to a running server over HTTP, as notebook 09 asks it: standard library alone.

    reply = chat(url, model, "How do I insert a table?")
    reply.text, reply.pieces, reply.sources

Guarantees: the answer is read as it streams; a server that refuses is a LabError with its words.
Out of scope: everything else of the protocol; the official `openai` client does that.
"""

import base64
import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from moxin_lab.lab.artifacts import LabError

SECONDS = 120


@dataclass(frozen=True)
class Reply:
    """text: the whole answer; pieces: the chunks it came in; sources: of `--index`, else empty."""

    text: str
    pieces: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]


def chat(
    url: str, model: str, question: str, *, picture: Image | None = None, max_tokens: int = 64
) -> Reply:
    """Ask one question, about a picture if there is one, and read the streamed answer.

    Raises LabError where the server refuses or is not there.
    """
    content: Any = question
    if picture is not None:
        image = {"type": "image_url", "image_url": {"url": data_uri(picture)}}
        content = [image, {"type": "text", "text": question}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            events = [_event(line) for line in response if line.startswith(b"data: ")]
    except urllib.error.HTTPError as error:
        raise LabError(f"{url} refuses with {error.code}: {error.read().decode()}") from error
    except OSError as error:
        raise LabError(f"{url} does not answer: {error}") from error
    pieces: list[str] = []
    sources: list[dict[str, Any]] = []
    for event in filter(None, events):
        sources += event.get("sources") or []
        for choice in event.get("choices", []):
            if piece := choice["delta"].get("content"):
                pieces.append(piece)
    return Reply("".join(pieces), tuple(pieces), tuple(sources))


def data_uri(picture: Image) -> str:
    """A picture as PNG in a `data:` address."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _event(line: bytes) -> dict[str, Any] | None:
    """The object of a server-sent event; None for the mark of the end."""
    text = line.removeprefix(b"data: ").strip()
    return None if text == b"[DONE]" else json.loads(text)
