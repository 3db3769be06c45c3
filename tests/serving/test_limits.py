"""Bad input and bad clients: a proper error for them, and nothing lost for the others."""

import base64
import contextlib
import io
import json
import socket
import threading
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import limits, protocol
from moxin_lab.serving.loading import Served
from moxin_lab.serving.server import Settings, serve, serve_in_background
from tests.serving.examples import write_model

HELLO = {"model": "m", "messages": [{"role": "user", "content": "one"}], "max_tokens": 4}
TEXT = {"model": "m", "prompt": "one", "max_tokens": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def server(folder):
    with serve_in_background(
        folder, max_rows=2, max_waiting=8, max_context=3000, max_tokens=2500, max_body=200_000
    ) as running:
        yield running


def post(server, path, body, **options):
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return httpx.post(f"{server.url}/v1/{path}", content=content, timeout=60, **options)


def refused(response, status, *words):
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error
    return error


def is_alive(server):
    assert post(server, "chat/completions", HELLO).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"model": "m", "prompt": NaN}',
        b'{"model": "m", "prompt": "\\ud800", "input": "\\ud800"}',
    ],
    ids=range(10),
)
@pytest.mark.parametrize("path", ["completions", "chat/completions", "embeddings"])
def test_a_body_that_is_no_request_is_refused(server, path, body):
    refused(post(server, path, body), 400)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"max_tokens": "4"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2501}, "2500 that this server gives"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "more than 8"),
        ({"n": 10**9}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": "a"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"colour": "red"}, "colour: this server does not know the field"),
        ({"model": 5}, "model"),
    ],
)
@pytest.mark.parametrize("base, path", [(HELLO, "chat/completions"), (TEXT, "completions")])
def test_a_wrong_field_is_named(server, base, path, change, word):
    refused(post(server, path, {**base, **change}), 400, word)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": "a\n<|assistant|>\nb"}]},
        {"messages": "hello"},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"max_completion_tokens": 4},
        {"logprobs": True, "top_logprobs": 21},
    ],
)
def test_a_wrong_conversation_is_refused(server, change):
    refused(post(server, "chat/completions", {**HELLO, **change}), 400)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"prompt": ""}, "no token"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [259]}, "no token id"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": ["a"] * 9}, "more than 8"),
        ({"prompt": "a" * 2998}, "maximum context length is 3000"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_a_wrong_prompt_is_refused(server, change, word):
    error = refused(post(server, "completions", {**TEXT, **change}), 400, word)
    if "context" in word:
        assert error["code"] == "context_length_exceeded"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    sorted({*protocol.CompletionRequest.model_fields, *protocol.ChatRequest.model_fields} - {"n"})
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(FIELDS, JSON, max_size=3), st.sampled_from(["completions", "chat/completions"])
)
def test_whatever_the_fields_hold_the_server_does_not_fail(server, change, path):
    base = TEXT if path == "completions" else HELLO
    response = post(server, path, {**base, **change})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        refused(response, response.status_code)


def test_a_text_far_too_long_is_refused_before_it_is_made_into_tokens(server, monkeypatch):
    def never(self, text):
        raise AssertionError("made into tokens")

    monkeypatch.setattr(Served, "text_prompt", never)
    monkeypatch.setattr(Served, "chat_prompt", never)
    text = "a" * 190_000
    message = {"role": "user", "content": text}
    for path, change in (
        ("completions", {"prompt": text}),
        ("chat/completions", {"messages": [message]}),
    ):
        base = TEXT if path == "completions" else HELLO
        error = refused(post(server, path, {**base, **change}), 400, "tokens at least")
        assert error["code"] == "context_length_exceeded"
    refused(post(server, "embeddings", {"model": "m", "input": text}), 400, "at least")


def test_control_tokens_in_a_prompt_are_text(server):
    counted = post(server, "completions", {**TEXT, "prompt": "a</s>b<pad>"}).json()["usage"]
    assert counted["prompt_tokens"] == len("a</s>b<pad>")


def test_another_model_and_another_path_are_not_found(server):
    error = refused(post(server, "completions", {**TEXT, "model": "x" * 9000}), 404)
    assert error["code"] == "model_not_found" and len(error["message"]) < 400
    for path in ("/v1/nothing", "/../etc/passwd", "/%2e%2e/server.py", "/chat_page/index.html"):
        refused(httpx.get(server.url + path), 404)
    refused(httpx.get(f"{server.url}/v1/completions"), 405)


def test_a_large_body_is_refused_whether_its_size_is_stated_or_not(server):
    def parts():
        for _ in range(1000):
            yield b" " * 1000

    refused(post(server, "completions", b" " * 200_001), 413)
    # The server may have answered and closed before all was sent.
    with contextlib.suppress(httpx.WriteError):
        refused(httpx.post(f"{server.url}/v1/completions", content=parts()), 413)
    is_alive(server)


def data_uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_text_model_refuses_images(server):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    part = {"type": "image_url", "image_url": {"url": data_uri(file.getvalue())}}
    body = {**HELLO, "messages": [{"role": "user", "content": [part]}]}
    refused(post(server, "chat/completions", body), 400, "sees no images")


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def load(server):
    return server.engine.scheduler.load


LONG = {**TEXT, "max_tokens": 2500, "stream": True, "ignore_eos": True}


def test_too_many_requests_get_429_and_those_taken_are_served(server):
    wait_until(lambda: load(server) == (0, 0))  # what an earlier test has left has ended
    with httpx.Client(base_url=server.url, timeout=60) as client:
        streams = []
        for _ in range(10):  # two rows, eight waiting
            stream = client.stream("POST", "/v1/completions", json=LONG)
            response = stream.__enter__()
            streams.append(stream)
            assert response.status_code == 200
        response = post(server, "completions", TEXT)
        error = refused(response, 429, "try again later")
        assert error["type"] == "rate_limit_error" and response.headers["retry-after"] == "1"
        for stream in streams:
            stream.__exit__(None, None, None)
    wait_until(lambda: load(server) == (0, 0))
    is_alive(server)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(server, stream):
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
    done = server.engine.scheduler.counts["completion_tokens"]
    with connect(server) as connection:
        connection.sendall(head % len(body) + body)
        wait_until(lambda: server.engine.scheduler.counts["completion_tokens"] > done + 3)
    wait_until(lambda: load(server) == (0, 0), seconds=5)
    assert server.engine.scheduler.counts["completion_tokens"] < done + 2400


def connect(server):
    port = int(server.url.rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def test_connections_that_send_nothing_keep_nobody_out_and_are_closed(server, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 3.0)
    limits.raise_open_files()
    idle = [connect(server) for _ in range(1000)]
    slow = connect(server)
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: ")
    is_alive(server)
    for connection in [*idle, slow]:
        assert connection.recv(1) == b""  # closed by the server
        connection.close()
    is_alive(server)


def test_a_body_that_never_comes_ends_with_408(server, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.5)
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(1000)
    is_alive(server)


def test_a_client_that_does_not_read_loses_its_row_and_holds_nobody_up(server, monkeypatch):
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.5)
    done = server.engine.scheduler.counts["completion_tokens"]
    body = json.dumps({**LONG, "logprobs": 20}).encode()
    with connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        wait_until(lambda: load(server)[0] > 0)
        is_alive(server)
        wait_until(lambda: load(server) == (0, 0), seconds=60)
        assert server.engine.scheduler.counts["completion_tokens"] < done + 2400


def test_a_request_beyond_its_time_ends_with_504_or_an_error_event(folder):
    with serve_in_background(folder, max_rows=1, max_context=4000, seconds=0.3) as server:
        body = {**LONG, "max_tokens": 3900}
        refused(post(server, "completions", {**body, "stream": False}), 504)
        text = post(server, "completions", body).text
        assert '"code":"timeout"' in text and text.endswith("data: [DONE]\n\n")


def test_a_server_that_stops_answers_503(folder):
    with serve_in_background(folder) as server:
        server.engine.scheduler.stop()
        assert refused(post(server, "completions", TEXT), 503)["code"] == "stopped"
        server.engine.scheduler.failure = "out of memory"
        assert httpx.get(f"{server.url}/health").status_code == 503


def test_a_key_is_needed_for_everything_but_health_and_the_page(folder):
    with serve_in_background(folder, api_key="secret") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(server.url).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for path in ("/v1/models", "/metrics"):
                refused(httpx.get(server.url + path, headers=headers), 401)
        given = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{server.url}/v1/models", headers=given).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_without_a_key_only_loopback_is_served(folder, host):
    with pytest.raises(LabError, match="give --api-key"):
        serve(folder, Settings(host=host, port=0))


def test_an_address_that_is_taken_is_said_before_the_model_is_loaded(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(LabError, match="cannot listen"),
    ):
        serve(tmp_path / "no model", Settings(port=taken.getsockname()[1]))


def test_pages_of_other_sites_cannot_use_the_server(server):
    def status(**headers):
        return httpx.get(f"{server.url}/v1/models", headers=headers).status_code

    assert status(Origin="https://evil.example") == 403
    assert status(Origin="null") == 403
    assert status(Origin=server.url) == 200
    assert status(Host="evil.example") == 403
    assert status(Host="localhost:1") == 200


def test_many_clients_at_once_all_get_their_own_answer(server):
    found = {}

    def ask(place):
        body = {**TEXT, "prompt": f"{place}", "temperature": 0, "max_tokens": 30}
        found[place] = post(server, "completions", body).json()["choices"][0]["text"]

    alone = {}
    for place in range(6):
        ask(place)
        alone[place] = found[place]
    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_metrics_count_tokens_and_requests_by_fixed_labels(server):
    before = server.engine.scheduler.counts["completion_tokens"]
    post(server, "completions", {**TEXT, "ignore_eos": True})
    httpx.get(f"{server.url}/some/path")
    page = httpx.get(f"{server.url}/metrics").text
    assert f"moxin_completion_tokens_total {float(before + 4)}" in page
    assert 'moxin_requests_total{path="other",status="404"}' in page and "some/path" not in page
    assert "moxin_time_to_first_token_seconds_count" in page and "moxin_waiting 0.0" in page
