"""Guarantees of the HTTP client of notebook 09: a stream is read whole, a refusal is told."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import client


@contextlib.contextmanager
def answering(status, lines):
    """A server that sends `lines` once; gives its address and what it was sent."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n" for line in lines).encode())

        def log_message(self, *_):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pieces_and_sources_of_a_stream_are_joined():
    events = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        {"choices": [{"delta": {"content": "표"}}]},
        {"choices": [{"delta": {"content": " [1]"}}], "sources": [{"number": 1}]},
        {"choices": []},
    ]
    lines = [": comment", *(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
    with answering(200, lines) as (url, sent):
        reply = client.chat(url, "m", "표?", picture=Image.new("RGB", (2, 2)), max_tokens=3)
    assert reply == client.Reply("표 [1]", ("표", " [1]"), ({"number": 1},))
    image, text = sent[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert (text["text"], sent[0]["max_tokens"], sent[0]["stream"]) == ("표?", 3, True)


def test_a_refusal_and_a_server_that_is_not_there_are_errors_with_the_reason():
    with (
        answering(429, ['{"error": "busy"}']) as (url, _),
        pytest.raises(LabError, match=r"refuses with 429(.|\n)*busy"),
    ):
        client.chat(url, "m", "q")
    with pytest.raises(LabError, match="does not answer"):
        client.chat("http://127.0.0.1:9", "m", "q")
