"""Guarantees of GRPO on several ranks: two gloo processes, as under torchrun, learn what one
learns.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moxin_lab.reasoning.asynchronous import train_overlapped
from moxin_lab.reasoning.grpo_trainer import train_grpo
from tests.posttraining.examples import make_model
from tests.reasoning.grpo_two_ranks import CASES, engine_of
from tests.reasoning.test_grpo_trainer import PROBLEMS, TOKENIZER, letters, make_settings, train

HERE = Path(__file__).parent
TWO = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Per case and rank: the log and the weights."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    search_path = [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]
    ranks = []
    for rank in range(2):
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
        }
        command = [sys.executable, str(HERE / "grpo_two_ranks.py"), str(folder)]
        ranks.append(
            subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in ranks:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    return {
        name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(2)]
        for name in CASES
    }


@pytest.mark.parametrize("name", ["scripted", "resampled"])
def test_two_processes_learn_what_one_learns(tmp_path, runs, name):
    model, log = train(
        tmp_path,
        make_settings(**CASES[name]),
        engine=engine_of(name),
        check_weights=name == "sampled",
    )
    for found in runs[name]:
        for column in (
            "loss",
            "gradient_norm",
            "kl",
            "clip_ratio",
            "sampling/sampling_logp_difference/mean",
        ):
            np.testing.assert_allclose(
                found["log"][column][0], log[column][0], rtol=1e-4, atol=1e-7, err_msg=column
            )
        for column in (
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            "completions/mean_length",
            "num_tokens",
            "staleness",
        ):
            assert found["log"][column] == log[column].tolist(), column
        for parameter, tensor in model.state_dict().items():
            torch.testing.assert_close(found["weights"][parameter], tensor, rtol=1e-2, atol=1e-3)


def test_ranks_that_sample_for_themselves_hold_the_same_rollouts_and_weights(runs):
    """Each rank's engine has numbers of its own; both logs are of all completions, and both models
    take the same steps.
    """
    first, second = runs["sampled"]
    clock = {
        name for name in first["log"] if name.startswith("seconds/") or name == "tokens_per_second"
    }
    assert {name: first["log"][name] for name in first["log"].keys() - clock} == {
        name: second["log"][name] for name in second["log"].keys() - clock
    }
    assert (
        max(first["log"]["sampling/sampling_logp_difference/mean"]) < 1e-4
    )  # sampled with the weights of the step
    for parameter, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][parameter]), parameter
    assert any(
        not torch.equal(tensor, make_model().state_dict()[name])
        for name, tensor in first["weights"].items()
    )


def test_fewer_prompts_than_ranks_and_overlapping_on_several_are_refused(tmp_path):
    common = {"seed": 0, "trainer_options": TWO}
    with pytest.raises(ValueError, match="1 prompts per step are fewer than 2 ranks"):
        settings = make_settings(prompts_per_step=1)
        train_grpo(
            make_model(), TOKENIZER, PROBLEMS, letters, settings, resume_folder=tmp_path, **common
        )
    with pytest.raises(ValueError, match="one rank only"):
        train_overlapped(
            make_model(),
            TOKENIZER,
            PROBLEMS,
            letters,
            make_settings(staleness=1),
            folder=tmp_path,
            **common,
        )
