"""`moxin-lab bench serve`: the server under load, and its scheduler beside the memory's limit.

    moxin-lab bench serve --json FILE                               tiny shape on the CPU
    moxin-lab bench serve --width full --device cuda --json FILE    the 8.11 B shape on a GPU

Every row goes through the server's own scheduler. `clients` rows are whole HTTP requests that
stream, from a process of their own: one client after another, then `--clients` at once, for
`--seconds` each. `decode` rows keep so many answers running after a prompt; `floor_ms` is the time
to read the weights and the rows' keys and values once, at the speed of a device copy measured in
the same run, and `floor_share` is floor over measured. `first token` rows are the time from
submitting a prompt to its first token.

Guarantees: random weights and text, so nothing can be guessed; a request that fails is counted and
its reason kept; every answer has as many tokens as were asked for.
Out of scope: other servers, whose published figures come from other machines (docs/serving.md).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import queue
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from moxin_lab.model.decoder import MoxinForCausalLM
    from moxin_lab.serving.jobs import Event, Job
    from moxin_lab.serving.scheduler import Scheduler

WARMUP_TOKENS = 16
PROMPT_TOKENS = 64
"""Of a client's request."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", default=None, help="scale of the shape (default: tiny; on a GPU full)"
    )
    parser.add_argument("--clients", type=int, default=16, help="clients at once (default 16)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="seconds of each row of clients (default 60)"
    )
    parser.add_argument(
        "--answer-tokens", type=int, default=64, help="new tokens of a client's request"
    )
    parser.add_argument(
        "--shapes",
        default=None,
        help="rows x tokens of the prompt of the decode rows (default: 1x128,16x128,32x128,8x8192; "
        "on the CPU 1x128,16x128)",
    )
    parser.add_argument(
        "--prompts", default=None, help="tokens of the first-token rows (default: 1024,8192; 1024)"
    )
    parser.add_argument("--new-tokens", type=int, default=128, help="timed tokens of decode rows")
    parser.add_argument("--no-http", action="store_true", help="omit the rows of clients")


@keeping("serve")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: kind, rows, prompt_tokens, ms_per_token, tokens_per_second, floor_ms, floor_share,
    first_token_ms, requests, failed, reason.
    """
    import torch

    from moxin_lab.bench.attention import ceilings
    from moxin_lab.bench.generation import make_model

    on_gpu = options.device == "cuda"
    options.width = options.width or ("full" if on_gpu else "tiny")
    shapes = options.shapes or ("1x128,16x128,32x128,8x8192" if on_gpu else "1x128,16x128")
    prompts = options.prompts or ("1024,8192" if on_gpu else "1024")
    limits = ceilings(options.device)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = make_model(options, dtype).requires_grad_(False)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "width": options.width,
        "dtype": str(dtype),
        "ceilings": limits,
        "rows": rows,
    }
    if not options.no_http:
        for row in client_rows(model, options):
            rows.append(row)
            keep(result)
    for shape in shapes.split(","):
        count, tokens = (int(number) for number in shape.split("x"))
        speed = limits["copy_bytes_per_second"]
        rows.append(decode_row(model, count, tokens, options.new_tokens, speed))
        keep(result)
    for number in prompts.split(","):
        rows.append(first_token_row(model, int(number)))
        keep(result)
    clients = [row for row in rows if row["kind"] == "clients"]
    if len(clients) == 2:
        result["times_one_client"] = (
            clients[1]["tokens_per_second"] / clients[0]["tokens_per_second"]
        )
    return result


# -------------------------------------------------------------------------------------------------
# the scheduler alone


class _Events:
    """Where a scheduler delivers: (when, job, event) in order."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[float, Job, Event]] = queue.SimpleQueue()

    def __call__(self, events: list[tuple[Job, Event]]) -> None:
        now = time.perf_counter()
        for job, event in events:
            self.queue.put((now, job, event))


def _scheduler(model: MoxinForCausalLM, rows: int, context: int) -> tuple[Scheduler, _Events]:
    from moxin_lab.serving.scheduler import Scheduler

    events = _Events()
    limit = min(context, model.config.max_position_embeddings)
    scheduler = Scheduler(model, deliver=events, max_context=limit, max_rows=rows)
    scheduler.start()
    return scheduler, events


def _jobs(model: MoxinForCausalLM, count: int, prompt: int, new: int) -> list[Job]:
    from moxin_lab.bench.generation import random_text
    from moxin_lab.serving.jobs import Job

    ids = random_text(model, count, prompt).tolist()
    return [Job(row, new, lambda _: ("", False)) for row in ids]


def decode_row(
    model: MoxinForCausalLM, rows: int, prompt: int, new: int, bytes_per_second: float
) -> dict[str, Any]:
    """Milliseconds per token of `rows` answers that run together, greedy, after all have begun."""
    from moxin_lab.bench.generation import weight_bytes

    # The first row generates while the others' prompts are read; the timed tokens come after.
    scheduler, events = _scheduler(model, rows, prompt + 16 * rows + new + 2 * WARMUP_TOKENS)
    row: dict[str, Any] = {"kind": "decode", "rows": rows, "prompt_tokens": prompt}
    try:
        budget = scheduler.max_context - prompt
        jobs = _jobs(model, rows, prompt, budget)
        scheduler.submit(jobs)
        begun: set[Job] = set()
        times: list[float] = []  # when the first row's tokens came, once all rows run
        while len(times) < new + WARMUP_TOKENS:
            when, job, event = events.queue.get(timeout=600)
            if event.finish is not None:
                return {**row, "reason": f"an answer ended too early: {event.finish} {event.error}"}
            begun.add(job)
            if len(begun) == rows and job is jobs[0]:
                times.append(when)
        timed = times[WARMUP_TOKENS:]
        milliseconds = (timed[-1] - timed[0]) * 1000 / (len(timed) - 1)
    finally:
        scheduler.stop()
    held = min(prompt + WARMUP_TOKENS + new, scheduler.ring.num_slots)
    ring = scheduler.ring.nbytes * held // scheduler.ring.num_slots
    floor = (weight_bytes(model) + ring) * 1000 / bytes_per_second
    return {
        **row,
        "ms_per_token": milliseconds,
        "tokens_per_second": rows * 1000 / milliseconds,
        "floor_ms": floor,
        "floor_share": floor / milliseconds,
    }


def first_token_row(model: MoxinForCausalLM, prompt: int, repeats: int = 5) -> dict[str, Any]:
    """Median milliseconds from submitting a prompt to its first token, on an idle scheduler."""
    scheduler, events = _scheduler(model, 1, prompt + 1)
    seconds = []
    try:
        for job in _jobs(model, repeats + 1, prompt, 1):
            began = time.perf_counter()
            scheduler.submit([job])
            when, _, event = events.queue.get(timeout=600)
            if event.finish != "length":
                raise RuntimeError(f"the prompt was not read: {event.error}")
            seconds.append(when - began)
    finally:
        scheduler.stop()
    milliseconds = statistics.median(seconds[1:]) * 1000  # the first one compiles
    return {
        "kind": "first token",
        "rows": 1,
        "prompt_tokens": prompt,
        "first_token_ms": milliseconds,
    }


# -------------------------------------------------------------------------------------------------
# over HTTP


def client_rows(model: MoxinForCausalLM, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One client after another, then many at once, against a server of this process."""
    from moxin_lab.serving.app import Engine, Settings
    from moxin_lab.serving.server import listen, running

    settings = Settings(port=0, max_rows=options.clients, max_context=256 + options.answer_tokens)
    engine = Engine(random_served(model), settings)
    with listen(settings) as listener, running(engine, listener) as url:
        for clients in (1, options.clients):
            # A process of its own, so that clients do not take the server's interpreter lock.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                work = (url, clients, options.seconds, options.answer_tokens)
                row = {"kind": "clients", **pool.apply(stream_for, work)}
            yield row


def random_served(model: MoxinForCausalLM) -> Any:
    """A model with random weights and a tokenizer of its vocabulary, each token a letter."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from moxin_lab.serving.loading import Served

    # Beyond the surrogates, of which no text is made.
    letters = ["a", *(chr(0x10000 + token) for token in range(1, model.config.vocab_size))]
    vocab = {letter: token for token, letter in enumerate(letters)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    return Served("random", model, tokenizer, frozenset())


@dataclasses.dataclass
class _Tally:
    """What one client has seen."""

    tokens: int = 0
    requests: int = 0
    first_seconds: list[float] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


def stream_for(url: str, clients: int, seconds: float, answer_tokens: int) -> dict[str, Any]:
    """Let `clients` send one streaming request after another for `seconds`; what they saw."""
    tallies = asyncio.run(_stream_all(url, clients, seconds, answer_tokens))
    first = [value for tally in tallies for value in tally.first_seconds]
    failures = [reason for tally in tallies for reason in tally.failures]
    row: dict[str, Any] = {
        "rows": clients,
        "prompt_tokens": PROMPT_TOKENS,
        "tokens_per_second": sum(tally.tokens for tally in tallies) / seconds,
        "first_token_ms": statistics.median(first) * 1000 if first else None,
        "requests": sum(tally.requests for tally in tallies),
        "failed": len(failures),
    }
    return row | ({"reason": failures[0][:300]} if failures else {})


async def _stream_all(url: str, clients: int, seconds: float, answer_tokens: int) -> list[_Tally]:
    import aiohttp

    tallies = [_Tally() for _ in range(clients)]
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        warmed = _Tally()
        await asyncio.gather(
            *(_one(session, url, answer_tokens, warmed, float("inf")) for _ in range(clients))
        )
        if warmed.failures:
            raise RuntimeError(f"the server cannot be measured: {warmed.failures[0]}")
        end = time.perf_counter() + seconds

        async def client(tally: _Tally) -> None:
            while time.perf_counter() < end:
                await _one(session, url, answer_tokens, tally, end)

        await asyncio.gather(*(client(tally) for tally in tallies))
    return tallies


async def _one(session: Any, url: str, answer_tokens: int, tally: _Tally, end: float) -> None:
    """One request; tokens that come before `end` count, and an incomplete answer is a failure."""
    import aiohttp

    body = {
        "model": "random",
        "prompt": [(7 * place + tally.requests) % 97 for place in range(PROMPT_TOKENS)],
        "max_tokens": answer_tokens,
        "temperature": 0,
        "stream": True,
    }
    began, seen = time.perf_counter(), 0
    tally.requests += 1
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                tally.failures.append(f"{response.status} {await response.text()}")
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    tally.failures.append(event["error"]["message"])
                    return
                seen += len(event["choices"][0]["text"])
                now = time.perf_counter()
                if seen == 1:
                    tally.first_seconds.append(now - began)
                tally.tokens += len(event["choices"][0]["text"]) if now < end else 0
    except (aiohttp.ClientError, TimeoutError) as error:
        tally.failures.append(f"{type(error).__name__}: {error}")
        return
    if seen != answer_tokens:
        tally.failures.append(f"{seen} tokens came, not {answer_tokens}")
