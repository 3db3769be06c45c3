"""A killed pretraining continues to the bit, and only as the training that it was."""

import os
import random
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moxin_lab.pretraining import trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.training import resume_points
from moxin_lab.training.identity import weights_digest
from moxin_lab.training.resume_points import ResumeError
from tests.pretraining.test_trainer import make_model, make_settings, make_tokens, weights
from tests.training.ranks import run_ranks

DROPOUT = {"attention_dropout": 0.2, "mlp_dropout": 0.2}


def make_stream(settings, seed=0, documents=6):
    # So few documents that pool a is read twice over: its first epoch ends within a phase.
    pools = {"a": make_tokens(documents, seed=1), "b": make_tokens(documents, seed=2)}
    return TrainingStream(
        pools, settings.phases, tokens_per_step=settings.tokens_per_step, seed=seed
    )


def train(folder, *, model=None, stream=None, settings=None, progress=None, save_phase=None):
    """Returns model, log and the rows of ids that the model read."""
    settings = settings or make_settings(checkpoint_every_steps=2, micro_batch_tokens=32)
    model, read = model or make_model(**DROPOUT), []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0].clone())
    )
    log = trainer.fit(
        model,
        stream or make_stream(settings),
        settings,
        resume_folder=folder,
        save_phase=save_phase or (lambda index: None),
        trainer_options={"accelerator": "cpu"},
        progress=progress,
    )
    return model, log, read


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


def at_step(stop, act):
    def progress(step, total, text):
        if step == stop:
            act()

    return progress


def interrupt():
    raise KeyboardInterrupt


def same_state(left, right):
    """The last resume points of two runs are equal but for seconds and attempts."""
    states = [
        torch.load(folder / "resume-00000010.ckpt", weights_only=True) for folder in (left, right)
    ]
    for state in states:
        log = next(v for name, v in state["callbacks"].items() if name.startswith("StepLog"))
        del log["seconds"], log["attempts"]
        del state["loops"]  # Lightning's counters of batches in this process
    assert_equal(*states)


def assert_equal(left, right, where="state"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}.{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def test_the_runs_that_are_killed_cross_phases_and_an_epoch():
    stream = make_stream(make_settings())
    assert [phase.first_step for phase in stream.phases] == [0, 4, 7]
    first = stream.phases[0]
    assert first.steps * stream.tokens_per_step > stream._pools["a"].length


@pytest.mark.parametrize("phase", [0, 1, 2])
@pytest.mark.parametrize("end", ["killed", "SIGTERM"])
def test_a_run_killed_at_a_random_step_of_any_phase_continues_to_the_bit(
    whole, tmp_path, phase, end
):
    folder, model, log, read = whole
    stream = make_stream(make_settings())
    seed = random.randrange(2**32)
    first = stream.phases[phase].first_step
    stop = random.Random(seed).randrange(first, first + stream.phases[phase].steps) + 1
    print(f"seed {seed}: ended after step {stop}")
    torch.manual_seed(7)
    act = interrupt if end == "killed" else lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as raised:
        train(tmp_path, progress=at_step(stop, act))
    point = (stop - 1) // 2 * 2  # the log comes before the point
    if end == "SIGTERM":
        assert raised.value.code == 143
        point = stop
    assert (tmp_path / f"resume-{point:08d}.ckpt").exists() == (point > 0)
    torch.manual_seed(99)  # whatever the next process has drawn must not matter
    if not point:
        torch.manual_seed(7)
    resumed, resumed_log, resumed_read = train(tmp_path)
    assert_equal(weights(resumed), weights(model))
    assert resumed_log.equals(log)
    assert_equal(resumed_read, read[2 * point :])  # two micro-batches a step
    same_state(tmp_path, folder)


def test_a_run_killed_after_its_last_step_is_complete(whole, tmp_path):
    _, model, log, _ = whole
    torch.manual_seed(7)
    train(tmp_path)
    again, again_log, read = train(tmp_path)
    assert read == []
    assert_equal(weights(again), weights(model))
    assert again_log.equals(log)


def test_sigterm_is_handled_as_before_after_a_training(tmp_path):
    def mine(number, frame):
        heard.append(number)

    heard = []
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(SystemExit):
            train(tmp_path, progress=at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def other_phase_length():
    settings = make_settings(checkpoint_every_steps=2, micro_batch_tokens=32)
    phases = list(settings.phases)
    phases[0] = SimpleNamespace(**{**vars(phases[0]), "steps": 5})
    return make_settings(checkpoint_every_steps=2, micro_batch_tokens=32, phases=tuple(phases))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda: {
                "settings": make_settings(
                    checkpoint_every_steps=2, micro_batch_tokens=32, learning_rate=2e-2
                )
            },
            "learning_rate was 0.01, is 0.02",
        ),
        (
            lambda: {"settings": other_phase_length()},
            "phases.0.steps was 4, is 5; .* was 10, is 11",
        ),
        (lambda: {"stream": make_stream(make_settings(), seed=1)}, "data was [0-9a-f]{12}, is"),
        (
            lambda: {"stream": make_stream(make_settings(), documents=7)},
            "data was [0-9a-f]{12}, is",
        ),
        (
            lambda: {"settings": make_settings(checkpoint_every_steps=2)},
            "micro_batch_tokens was 32, is 64; parts was 2, is 1",
        ),
        (lambda: {"model": other_start()}, "start was [0-9a-f]{12}, is [0-9a-f]{12}"),
        (
            lambda: {"model": make_model(**DROPOUT, rope_theta=5e4)},
            "model.rope_theta was 10000.0, is 50000.0",
        ),
    ],
)
def test_a_run_with_other_settings_data_seed_or_start_is_not_continued(
    whole, tmp_path, changes, message
):
    folder = whole[0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = changes()
    if "settings" in options and "stream" not in options:
        options["stream"] = make_stream(options["settings"])
    with pytest.raises(ResumeError, match=message):
        train(tmp_path, **options)


def other_start():
    model = make_model(**DROPOUT)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-7
    return model


def test_how_often_points_are_written_may_change(whole, tmp_path):
    for file in whole[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = make_settings(checkpoint_every_steps=1, micro_batch_tokens=32)
    assert train(tmp_path, settings=settings)[1].equals(whole[2])


def test_no_two_checkpoints_of_different_steps_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(resume_points, "KEPT", 100)
    model, ends = make_model(**DROPOUT), []
    train(
        tmp_path,
        model=model,
        settings=make_settings(checkpoint_every_steps=1, micro_batch_tokens=32),
        save_phase=lambda index: ends.append(weights_digest(model)),
    )
    points = resume_points.points(tmp_path)
    assert [point.step for point in points] == list(range(10, 0, -1))
    assert len({resume_points.sha256_of(point.file) for point in points}) == 10
    states = [torch.load(point.file, weights_only=True)["state_dict"] for point in points]
    assert len({str(sorted((n, t.sum().item()) for n, t in s.items())) for s in states}) == 10
    assert len(set(ends)) == 3


def test_a_full_disk_fails_before_the_first_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        resume_points.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000)
    )
    with pytest.raises(OSError, match="make room or choose another folder"):
        train(tmp_path, progress=lambda *arguments: steps.append(arguments))
    assert steps == []


def test_a_small_tmp_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    train(tmp_path / "run")
    assert len(resume_points.points(tmp_path / "run")) == 2


def settings_with(**phase):
    first = SimpleNamespace(
        **{"name": "short", "steps": 2, "sequence_length": 32, "mixture": {"a": 1}, **phase}
    )
    return make_settings(phases=(first,))


@pytest.mark.parametrize(
    ("phase", "model", "message"),
    [
        ({"mixture": {}}, {}, "phase 'short': the mixture is empty"),
        ({"mixture": {"a": 1, "b": 0}}, {}, "the mixture is {'b': 0}; it needs at least one pool"),
        ({"mixture": {"c": 1}}, {}, "phase 'short' draws from c; there are a, b"),
        ({"sequence_length": 16}, {}, "no phase has a context as long as the model's window: 32"),
        ({"sequence_length": 64}, {"max_position_embeddings": 40}, "context of 64, the model 40"),
        ({}, {"vocab_size": 41}, "a vocabulary of 40, the model has 41"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_the_first_step(tmp_path, phase, model, message):
    settings, steps = settings_with(**phase), []
    with pytest.raises(ValueError, match=message):
        train(
            tmp_path,
            model=make_model(**model),
            stream=make_stream(settings),
            settings=settings,
            progress=lambda *arguments: steps.append(arguments),
        )
    assert steps == []


def test_more_ranks_than_documents_are_refused():
    stream = make_stream(make_settings(), documents=1)
    trainer.check_inputs(make_model(), stream, 2)
    with pytest.raises(ValueError, match="3 ranks and 2 documents"):
        trainer.check_inputs(make_model(), stream, 3)


def test_two_ranks_that_one_signal_ends_continue_to_the_bit(tmp_path):
    run_ranks(Path(__file__).with_name("two_ranks.py"), tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in ranks:
        assert rank["code"] == 143  # also on the rank that got no signal
        assert_equal(rank["resumed"]["weights"], rank["whole"]["weights"])
        assert_equal(rank["resumed"]["log"], rank["whole"]["log"])
        assert_equal(rank["resumed"]["read"], rank["whole"]["read"][5:])
    assert_equal(ranks[0]["whole"]["weights"], ranks[1]["whole"]["weights"])
    assert not torch.equal(ranks[0]["whole"]["read"][0], ranks[1]["whole"]["read"][0])
    state = torch.load(tmp_path / "whole" / "resume-00000008.ckpt", weights_only=True)
    first, second = (states["cpu"] for states in state["random_states"])
    assert not torch.equal(first, second)
