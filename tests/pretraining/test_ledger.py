"""The order ledger names the documents that the training loop reads."""

from types import SimpleNamespace

import numpy as np
import pytest

from moxin_lab import cli
from moxin_lab.pretraining import ledger, trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.pools import Tokens
from moxin_lab.training.resume import StepParts
from tests.pretraining.test_trainer import make_model, make_settings

VOCAB = 40
STEPS = 10


def own_tokens(pool, first_id, documents):
    """Documents that each repeat an id of their own, so that a token tells its document."""
    lengths = np.random.default_rng(first_id).integers(5, 30, documents)
    pieces = [
        np.array([1, *[first_id + index] * length, 2], dtype=np.int32)
        for index, length in enumerate(lengths)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    names = [f"{pool}/{index}" for index in range(documents)]
    return Tokens(np.concatenate(pieces), offsets, np.ones(documents, np.int64), names, VOCAB)


def make_stream(settings, seed=0):
    pools = {"a": own_tokens("a", 4, 12), "b": own_tokens("b", 20, 12)}
    return TrainingStream(
        pools, settings.phases, tokens_per_step=settings.tokens_per_step, seed=seed
    )


def documents_of(input_ids):
    """Names of the documents of rows, in the order in which their tokens are met."""
    names = []
    for row in np.asarray(input_ids):
        for token in row[row > 2]:
            name = f"a/{token - 4}" if token < 20 else f"b/{token - 20}"
            if not names or names[-1] != name:
                names.append(name)
    return names


def documents_in_ledger(table):
    """The same of a ledger's rows; a piece of bos or eos alone holds no token of its own."""
    names = []
    for piece in table.itertuples(index=False):
        inner = piece.tokens - (piece[3] == 0)  # without bos
        if inner > 0 and (not names or names[-1] != piece.document):
            names.append(piece.document)
    return names


def test_the_ledger_is_what_the_training_loop_reads_across_a_phase_and_an_epoch(tmp_path):
    settings = make_settings(micro_batch_tokens=32)
    stream, model, read = make_stream(settings), make_model(), []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0].clone())
    )
    trainer.fit(
        model,
        stream,
        settings,
        resume_folder=tmp_path,
        save_phase=lambda index: None,
        trainer_options={"accelerator": "cpu"},
    )
    assert len(read) == 2 * STEPS and len({ids.shape[1] for ids in read}) == 2  # two contexts
    pools = {name: own_tokens(name, first, 12) for name, first in (("a", 4), ("b", 20))}
    assert all(stream.consumed[name] > tokens.offsets[-1] for name, tokens in pools.items())
    for step in range(STEPS):
        told = ledger.of_batch(stream, step, accumulate=2)
        rows = [row for ids in read[2 * step : 2 * step + 2] for row in ids.numpy()]
        by_row = [documents_in_ledger(part) for _, part in told.groupby("row", sort=False)]
        assert by_row == [documents_of([row]) for row in rows]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_read_what_the_ledger_says_of_each_and_together_the_whole_step(accumulate):
    settings = make_settings(tokens_per_step=128)
    stream = make_stream(settings)
    for step in range(STEPS):
        rows = []
        for rank in (0, 1):
            loader = StepParts(stream, accumulate, rank, 2)
            read = [loader[step * accumulate + micro]["input_ids"] for micro in range(accumulate)]
            told = ledger.of_batch(stream, step, rank=rank, ranks=2, accumulate=accumulate)
            by_row = [documents_in_ledger(part) for _, part in told.groupby("row", sort=False)]
            assert by_row == [documents_of([row]) for ids in read for row in ids.numpy()]
            rows += told["row"].unique().tolist()
        assert sorted(rows) == ledger.of_batch(stream, step)["row"].unique().tolist()


def test_the_hashes_tell_an_order_from_another_and_are_the_same_twice():
    settings = make_settings()
    first, again = (ledger.hashes(make_stream(settings), every=4) for _ in range(2))
    assert first.equals(again)
    assert first[["first step", "last step"]].values.tolist() == [[0, 3], [4, 7], [8, 9]]
    other = ledger.hashes(make_stream(settings, seed=1), every=4)
    assert not set(first["sha256"]) & set(other["sha256"])


def test_a_changed_mixture_changes_the_hashes_from_its_phase_on():
    settings = make_settings()
    changed = make_settings()
    changed.phases = (*settings.phases[:2], SimpleNamespace(**vars(settings.phases[2])))
    changed.phases[2].mixture = {"a": 1}
    one, two = (ledger.hashes(make_stream(values), every=1) for values in (settings, changed))
    differ = (one["sha256"] != two["sha256"]).tolist()
    assert differ == [False] * 7 + [True] * 3


def test_steps_count_within_their_phase_and_what_does_not_exist_is_refused():
    stream = make_stream(make_settings())
    assert [ledger.step_of_phase(stream, phase, 0) for phase in (1, 2, 3)] == [0, 4, 7]
    with pytest.raises(IndexError, match=r"phase 2 \(long\) has no step 3: its steps are 0 to 2"):
        ledger.step_of_phase(stream, 2, 3)
    with pytest.raises(IndexError, match="no phase 4: phases are 1 to 3"):
        ledger.step_of_phase(stream, 4, 0)
    with pytest.raises(ValueError, match="rank 2 is outside the 2 ranks"):
        ledger.of_batch(stream, 0, rank=2, ranks=2)


def test_the_command_says_what_must_run_first(tmp_path, capsys):
    for name in ("notebooks", "moxin_lab", "data_cards"):
        (tmp_path / name).mkdir()
    words = ["--root", str(tmp_path), "order", "--phase", "1", "--step", "17"]
    assert cli.main(words) == 1
    assert "documents is missing: run stages 01 and 02 first" in capsys.readouterr().err
    assert cli.main([*words, "--ranks", "3"]) == 1
    assert "not a multiple of micro_batch_tokens x ranks" in capsys.readouterr().err
