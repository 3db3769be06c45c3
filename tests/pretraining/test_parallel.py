"""A sharded training is the training of one process, on any number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moxin_lab.model import convert
from moxin_lab.pretraining import parallel, trainer
from moxin_lab.training.resume_points import points
from tests.pretraining.sharded_ranks import SEED, make_run_settings
from tests.pretraining.test_trainer import make_model, make_settings, make_stream
from tests.training.ranks import run_ranks

SCRIPT = Path(__file__).with_name("sharded_ranks.py")
# Of each of ten steps at a learning rate of 0.01, relative; float32, sums in another order.
TOLERANCE = 1e-4


def drawn_model():
    """The model that a sharded one on the meta device becomes, whole."""
    model = make_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            first = parallel.initial_weight(model.config, name, weight.shape, SEED, "cpu")
            weight.copy_(first)
    return model


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    settings, model = make_run_settings(), drawn_model()
    log = trainer.fit(
        model,
        make_stream(settings),
        settings,
        resume_folder=tmp_path_factory.mktemp("one"),
        save_phase=lambda index: None,
        trainer_options={"accelerator": "cpu"},
    )
    return model.state_dict(), log


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Sharded by rows, by tensors with checkpointing, the same compiled, and ended after five
    steps.
    """
    folder = tmp_path_factory.mktemp("two")
    tensors = {"data": 1, "tensor": 2, "activation_checkpointing": "full"}
    jobs = [
        {"name": "rows", "points": "rows", "parallel": {"data": 2}},
        {"name": "tensors", "points": "tensors", "parallel": tensors},
        {"name": "compiled", "points": "compiled", "parallel": tensors, "compiled": True},
        {"name": "ended", "points": "points", "parallel": {"data": 2}, "stop": 5},
    ]
    return ran(folder, 2, jobs), folder


def ran(folder, ranks, jobs):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(SCRIPT, folder, ranks=ranks)
    return {
        job["name"]: torch.load(folder / f"{job['name']}.pt", weights_only=True) for job in jobs
    }


def assert_same_curve(found, expected):
    for column in ("loss", "gradient_norm"):
        np.testing.assert_allclose(found[column], expected[column], rtol=TOLERANCE)
    assert found["targets"] == expected["targets"].tolist()
    assert found["learning_rate"] == expected["learning_rate"].tolist()


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_model_on_the_meta_device_begins_with_the_same_weights_on_any_ranks(two_ranks):
    expected = drawn_model().state_dict()
    for name in ("rows", "tensors", "compiled"):
        assert_equal(two_ranks[0][name]["start"], expected)


@pytest.mark.parametrize("name", ["rows", "tensors", "compiled"])
def test_two_ranks_have_the_loss_curve_of_one_process(one_process, two_ranks, name):
    assert_same_curve(two_ranks[0][name]["log"], one_process[1])


def test_a_run_ended_on_two_ranks_continues_on_one_with_the_same_weights(
    one_process, two_ranks, tmp_path
):
    ended, folder = two_ranks[0]["ended"], two_ranks[1]
    assert ended["log"] == 143
    newest = points(folder / "points")[0]
    assert newest.step == 5 and newest.file.is_dir()
    whole = parallel.to_pretrained(newest.file, make_model().config, tmp_path / "hub")
    assert_equal(convert.from_pretrained(whole).state_dict(), ended["weights"])
    job = {"name": "continued", "points": "points", "parallel": {"data": 1}}
    continued = ran(folder, 1, [job])["continued"]
    assert_equal(continued["start"], ended["weights"])
    assert_same_curve(continued["log"], one_process[1])


def test_weights_go_to_a_distributed_checkpoint_and_back_to_the_bit(tmp_path):
    model = drawn_model()
    folder = convert.save_pretrained(model, tmp_path / "hub")
    shards = parallel.to_distributed(folder, tmp_path / "shards")
    back = parallel.to_pretrained(shards, model.config, tmp_path / "back")
    assert_equal(convert.from_pretrained(back).state_dict(), model.state_dict())
    other = make_model()
    parallel.load_distributed(other, shards)
    assert_equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("settings", "options", "model", "message"),
    [
        ({"data": 2}, {"devices": 3}, {}, "data 2 x tensor 1 are 2 ranks, and 1 node"),
        ({"data": 1, "tensor": 4}, {}, {}, "num_key_value_heads 2 does not divide into 4 parts"),
        ({"data": 1, "tensor": 2}, {}, {"mlp_dropout": 0.1}, "models without dropout"),
        ({"data": 2}, {"strategy": "ddp"}, {}, "strategy 'ddp': with `parallel`"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_any_rank_starts(
    tmp_path, settings, options, model, message
):
    run = make_settings()
    with pytest.raises(ValueError, match=message):
        trainer.fit(
            make_model(**model),
            make_stream(run),
            run,
            resume_folder=tmp_path,
            save_phase=lambda index: None,
            trainer_options={"accelerator": "cpu", **options},
            parallel=parallel.ParallelSettings(**settings),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, r"model\.layers\.2\.\S+ is \(.*\) there and missing here"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.\S+ is missing there and \("),
        ({"intermediate_size": 48}, r"\(16, 32\) there and \(16, 48\) here"),
    ],
)
def test_a_distributed_checkpoint_of_another_model_is_refused(tmp_path, changes, message):
    folder = convert.save_pretrained(make_model(), tmp_path / "hub")
    shards = parallel.to_distributed(folder, tmp_path / "shards")
    with pytest.raises(ValueError, match=message):
        parallel.to_pretrained(shards, make_model(**changes).config, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_shard_of_a_distributed_checkpoint_is_refused(tmp_path):
    folder = convert.save_pretrained(make_model(), tmp_path / "hub")
    shards = parallel.to_distributed(folder, tmp_path / "shards")
    (file,) = shards.glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="shards is damaged: "):
        parallel.to_pretrained(shards, make_model().config, tmp_path / "back")
    (shards / ".metadata").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no whole distributed checkpoint"):
        parallel.to_pretrained(shards, make_model().config, tmp_path / "back")


def test_an_unknown_way_of_checkpointing_is_refused():
    with pytest.raises(ValueError, match="available are none, selective, full"):
        parallel.ParallelSettings(data=1, activation_checkpointing="half")
