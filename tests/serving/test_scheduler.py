"""Requests that join and leave a running batch get what they would get alone."""

import queue
import threading
import time

import pytest
import torch

from moxin_lab.model.generate import generate
from moxin_lab.serving.jobs import Busy, Job, Stopped
from moxin_lab.serving.scheduler import Scheduler
from tests.posttraining.examples import make_model

MODEL = make_model(sliding_window=16, max_position_embeddings=512)


class Mailbox:
    """Events by job; `of(job)` waits for the last one."""

    def __init__(self):
        self.boxes = {}
        self.lock = threading.Lock()

    def __call__(self, events):
        for job, event in events:
            self.box(job).put(event)

    def box(self, job):
        with self.lock:
            return self.boxes.setdefault(job, queue.SimpleQueue())

    def of(self, job):
        events = [self.box(job).get(timeout=60)]
        while events[-1].finish is None:
            events.append(self.box(job).get(timeout=60))
        return events


@pytest.fixture
def start():
    running = []

    def start(model=MODEL, **options):
        box = Mailbox()
        settings = {"max_context": 256, "max_rows": 3, "prefill_chunk": 8, **options}
        scheduler = Scheduler(model, deliver=box, **settings)
        scheduler.start()
        running.append(scheduler)
        return scheduler, box

    yield start
    for scheduler in running:
        scheduler.stop()


def make_job(ids, max_tokens=12, accept=lambda token: ("", False), **options):
    return Job(ids, max_tokens, accept, **{"logprobs": 0, **options})


def tokens(events):
    return [event.score.token_id for event in events if event.score is not None]


def prompts(count):
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randint(3, 259, (int(length),), generator=generator).tolist()
        for length in torch.randint(1, 60, (count,), generator=generator)
    ]


@pytest.mark.parametrize("lag", [0, 1])  # 1: as on a GPU
def test_greedy_tokens_of_a_crowd_are_those_of_each_alone(start, lag):
    scheduler, box = start(lag=lag)
    jobs = [make_job(ids, max_tokens=1 + place % 20) for place, ids in enumerate(prompts(10))]
    for job in jobs:
        scheduler.submit([job])
    for job in jobs:
        ids = torch.tensor([job.prompt_ids])
        expected = generate(MODEL, ids, max_new_tokens=job.max_tokens)[0, ids.shape[1] :].tolist()
        events = box.of(job)
        assert tokens(events) == expected and events[-1].finish == "length"
    assert scheduler.load == (0, 0) and scheduler.ring.began == {}


def test_the_decoding_kernels_serve_rows_of_different_ages(start):
    """On the CPU in Triton's interpreter, which takes seconds."""
    pytest.importorskip("triton", reason="Triton is not installed here; the GPU machine has it")
    shape = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = make_model(sliding_window=8, num_hidden_layers=1, **shape)
    scheduler, box = start(model, kernels=True, lag=1, max_rows=4)
    jobs = [make_job([5] * size, max_tokens=new) for size, new in ((3, 4), (12, 3), (1, 2))]
    for job in jobs:
        scheduler.submit([job])
    for job in jobs:
        ids = torch.tensor([job.prompt_ids])
        expected = generate(model, ids, max_new_tokens=job.max_tokens)[0, ids.shape[1] :].tolist()
        assert tokens(box.of(job)) == expected


def test_a_sample_depends_on_its_seed_not_on_its_company(start):
    scheduler, box = start()

    def sampled(seed, ids=(5, 6, 7)):
        return make_job(list(ids), temperature=1.2, top_p=0.9, seed=seed)

    alone = sampled(1)
    scheduler.submit([alone])
    expected = tokens(box.of(alone))
    crowd = [sampled(2), sampled(1), make_job([9] * 30), sampled(1)]
    scheduler.submit(crowd)
    found = [tokens(box.of(job)) for job in crowd]
    assert found[1] == found[3] == expected and found[0] != expected


@pytest.mark.parametrize("temperature", [1e-40, 1e-20, 1e-5])
def test_a_temperature_too_low_for_its_numbers_is_greedy(start, temperature):
    scheduler, box = start()
    jobs = [make_job([5, 6], temperature=value, seed=1) for value in (0.0, temperature)]
    scheduler.submit(jobs)
    assert tokens(box.of(jobs[1])) == tokens(box.of(jobs[0]))


def test_prompt_scores_are_those_of_the_forward_pass(start):
    scheduler, box = start()
    ids = prompts(3)[0] + [7] * 30
    job = make_job(ids, max_tokens=1, prompt_logprobs=2)
    scheduler.submit([job])
    scores = next(event.prompt_scores for event in box.of(job) if event.prompt_scores)
    log_probs = MODEL(torch.tensor([ids]))[0].log_softmax(dim=-1)
    assert [score.token_id for score in scores] == ids and scores[0].log_prob is None
    for place, score in enumerate(scores[1:]):
        assert score.log_prob == pytest.approx(log_probs[place, ids[place + 1]].item(), abs=1e-4)
        values = log_probs[place].topk(2)
        assert [token for token, _ in score.top] == values.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.values.tolist(), abs=1e-4)


def test_an_embedding_is_the_mean_of_the_last_states(start):
    scheduler, box = start()
    job = make_job([5, 6, 7] * 9, max_tokens=0, pool=True)
    scheduler.submit([job])
    expected = MODEL.hidden_states(torch.tensor([job.prompt_ids]))[0].mean(dim=0)
    torch.testing.assert_close(box.of(job)[-1].embedding, expected, atol=1e-5, rtol=1e-4)


def test_an_end_token_and_a_stop_string_end_a_job(start):
    scheduler, box = start()
    reference = make_job([5, 6])
    scheduler.submit([reference])
    expected = tokens(box.of(reference))
    ended = make_job([5, 6], end_ids=frozenset([expected[4]]))
    seen = []

    def accept(token):
        seen.append(token)
        return "x", len(seen) == 3

    stopped = make_job([5, 6], accept=accept)
    scheduler.submit([ended, stopped])
    events = box.of(ended)
    assert tokens(events)[: expected.index(expected[4]) + 1] == tokens(events)
    assert events[-1].finish == "stop"
    assert box.of(stopped)[-1].finish == "stop" and seen == expected[:3]


def test_a_cancelled_job_frees_its_row_at_once(start):
    scheduler, box = start(max_rows=1)
    endless, waiting = make_job([5], max_tokens=250), make_job([6], max_tokens=3)
    scheduler.submit([endless, waiting])
    assert box.box(endless).get(timeout=60).finish is None
    scheduler.cancel(endless)
    assert box.of(endless)[-1].finish == "cancelled"
    assert box.of(waiting)[-1].finish == "length"
    assert scheduler.counts["completion_tokens"] < 200
    scheduler.cancel(waiting)  # which has ended: nothing happens
    again = make_job([6], max_tokens=3)
    scheduler.submit([again])
    assert box.of(again)[-1].finish == "length" and box.box(waiting).empty()


def test_a_job_out_of_time_ends_and_says_so(start):
    scheduler, box = start(max_rows=1)
    late = make_job([5], max_tokens=250, deadline=time.monotonic() + 0.05)
    never = make_job([6], max_tokens=5, deadline=time.monotonic() - 1)
    scheduler.submit([late, never])
    assert box.of(late)[-1].finish == "timeout" and box.of(never)[-1].finish == "timeout"


def test_a_full_queue_refuses_and_takes_all_jobs_or_none(start):
    scheduler, box = start(max_rows=1, max_waiting=2)
    first = make_job([5], max_tokens=250)
    scheduler.submit([first])
    box.box(first).get(timeout=60)  # it has its row
    with pytest.raises(Busy, match="may wait: try again later"):
        scheduler.submit([make_job([5], 9) for _ in range(3)])
    assert scheduler.load == (1, 0)
    scheduler.submit([make_job([5], 9) for _ in range(2)])
    assert scheduler.load == (1, 2)


def test_as_many_jobs_are_taken_whether_or_not_the_scheduler_has_seen_them():
    asleep = Scheduler(
        MODEL, deliver=lambda events: None, max_context=256, max_rows=2, max_waiting=3
    )
    for _ in range(5):  # two rows, three waiting: the thread that fills the rows has not begun
        asleep.submit([make_job([5], max_tokens=250)])
    with pytest.raises(Busy, match="5 requests are at work or wait, 2 may be at work and 3 may"):
        asleep.submit([make_job([5], max_tokens=250)])


def test_a_place_in_the_queue_comes_back_with_every_end_of_a_job(start):
    def fails():
        raise ValueError("no such picture")

    scheduler, box = start(max_rows=1, max_waiting=2)
    for _ in range(3):
        jobs = [make_job([5], 3), make_job([5], embed=fails), make_job([5], deadline=0.0)]
        scheduler.submit(jobs)
        assert [box.of(job)[-1].finish for job in jobs] == ["length", "error", "timeout"]
        gone = make_job([5], max_tokens=250)
        scheduler.submit([gone])
        scheduler.cancel(gone)
        assert box.of(gone)[-1].finish == "cancelled"


def test_what_fails_harms_no_other(start):
    scheduler, box = start()

    def fails():
        raise ValueError("no such picture")

    good = make_job([5, 6], max_tokens=30)
    expected = generate(MODEL, torch.tensor([[5, 6]]), max_new_tokens=30)[0, 2:].tolist()
    bad = make_job([5], embed=fails)
    poisoned = make_job([5, 6, 7], embed=lambda: torch.full((1, 3, 16), torch.nan))
    scheduler.submit([good, bad, poisoned, make_job([8])])
    assert "no such picture" in box.of(bad)[-1].error
    assert box.of(poisoned)[-1].error == "the model's logits are not finite"
    assert tokens(box.of(good)) == expected
    after = [make_job([5, 6], max_tokens=30) for _ in range(3)]
    scheduler.submit(after)
    for job in after:
        assert tokens(box.of(job)) == expected


def test_a_step_that_fails_ends_every_job_even_one_whose_last_token_is_in_flight(start):
    scheduler, box = start(lag=1)
    jobs = [make_job([5], max_tokens=1), make_job([6], max_tokens=9), make_job([7], max_tokens=1)]
    step = scheduler._step

    def fails():
        if len(scheduler._in_flight) == 2:
            raise RuntimeError("the device is gone")
        step()

    scheduler._step = fails
    scheduler.submit(jobs)
    assert [box.of(job)[-1].finish for job in jobs] == ["length", "error", "error"]
    assert "the device is gone" in scheduler.failure
    with pytest.raises(Stopped, match="device is gone"):
        scheduler.submit(jobs)


def test_a_stopped_scheduler_ends_its_jobs_and_takes_no_more(start):
    scheduler, box = start()
    job = make_job([5], max_tokens=250)
    scheduler.submit([job])
    scheduler.stop()
    assert box.of(job)[-1].finish == "error"
    with pytest.raises(Stopped):
        scheduler.submit([job])


@pytest.mark.parametrize("ids, new", [([], 1), ([5] * 250, 7)])
def test_a_job_beyond_the_context_is_refused(start, ids, new):
    scheduler, _ = start()
    with pytest.raises(ValueError, match="256 at most"):
        scheduler.submit([make_job(ids, new)])
