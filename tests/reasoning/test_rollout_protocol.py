"""Guarantees of the protocol of engines: two calls are all that training asks, and lists are all
that it needs back.
"""

import copy
import random

import pytest
import torch

from moxin_lab.reasoning.rollout import RolloutEngine, rollout_of
from tests.posttraining.examples import make_model
from tests.reasoning.test_grpo_trainer import EOS, PAD, make_settings, train, without_clock

ASKED = ("generate", "update_weights")


class FromElsewhere:
    """An engine as another library would have it: its own copy of the weights and random numbers,
    one sequence at a time, no cache, and lists as results. Any other attribute raises an error.
    """

    def __init__(self, model):
        self.__dict__["_hidden"] = {"model": copy.deepcopy(model), "version": 0, "versions": []}

    def __getattribute__(self, name):
        if name in ASKED or name.startswith("__"):
            return object.__getattribute__(self, name)
        raise AssertionError(
            f"training asked the engine for {name!r}, which is not in the protocol"
        )

    def update_weights(self, state_dict, version):
        hidden = self.__dict__["_hidden"]
        hidden["model"].load_state_dict(
            {name: tensor.clone() for name, tensor in state_dict.items()}
        )
        hidden["version"] = version
        hidden["versions"].append(version)

    @torch.no_grad()
    def generate(self, prompts, sampling, seed):
        hidden, numbers = self.__dict__["_hidden"], random.Random(seed)
        rows, found = [], []
        for prompt in (prompt for prompt in prompts for _ in range(sampling.num_generations)):
            ids, log_probs = list(prompt), []
            while len(log_probs) < sampling.max_completion_length and (
                not log_probs or ids[-1] != EOS
            ):
                logits = hidden["model"](torch.tensor([ids]))[0, -1].double() / sampling.temperature
                probabilities = logits.softmax(-1).tolist()
                ids += numbers.choices(range(len(probabilities)), probabilities)
                log_probs.append(logits.log_softmax(-1)[ids[-1]].item())
            rows.append(ids[len(prompt) :])
            found.append(log_probs)
        ends = {"eos_token_id": EOS, "pad_token_id": PAD}
        return rollout_of(
            prompts,
            rows,
            found,
            num_generations=sampling.num_generations,
            version=hidden["version"],
            **ends,
        )


@pytest.mark.parametrize("correction", ["none", "naive", "decoupled"])
def test_training_runs_on_an_engine_that_has_the_two_calls_and_nothing_else(tmp_path, correction):
    settings = make_settings(steps=4, correction=correction, learning_rate=1e-3)
    engine: RolloutEngine = FromElsewhere(make_model())
    _, log = train(tmp_path / "elsewhere", settings, engine=engine)
    assert len(log) == 4 and engine.__dict__["_hidden"]["versions"] == [0, 1, 2, 3]
    assert log["staleness"].eq(0).all() and log["gradient_norm"].gt(0).all()
    # Its probabilities are the trainer's, so its weights are those of each step.
    assert log["sampling/sampling_logp_difference/mean"].max() < 1e-4
    _, again = train(tmp_path / "again", settings, engine=FromElsewhere(make_model()))
    assert without_clock(log).equals(without_clock(again))


def test_lists_become_a_rollout():
    found = rollout_of(
        [[5], [6, 7]],
        [[8, EOS], [9], [8, 9, 8], [EOS]],
        [[-1.0, -2.0], [-3.0], [-1.0, -1.5, -2.0], [-4.0]],
        num_generations=2,
        eos_token_id=EOS,
        pad_token_id=PAD,
        version=3,
    )
    assert found.prompt_ids == [[5], [5], [6, 7], [6, 7]] and found.version == 3
    assert found.completion_ids.tolist() == [
        [8, EOS, PAD],
        [9, PAD, PAD],
        [8, 9, 8],
        [EOS, PAD, PAD],
    ]
    assert found.completion_ids.dtype == torch.int64 and found.log_probs.dtype == torch.float32
    assert found.completion_mask.sum(1).tolist() == [2, 1, 3, 1] == found.lengths.tolist()
    assert found.log_probs.tolist() == [[-1, -2, 0], [-3, 0, 0], [-1, -1.5, -2], [-4, 0, 0]]
    assert found.finish_reasons == ["eos", "length", "length", "eos"]


@pytest.mark.parametrize(
    ("completions", "log_probs", "message"),
    [
        ([[8]], [[-1.0]], "1 prompts x 2 generations are 2 rows, not 1 completions"),
        ([[8], []], [[-1.0], []], "row 1 has 0 tokens"),
        ([[8], [9, 9]], [[-1.0], [-1.0]], "row 1 has 2 tokens and 1 log-probabilities"),
        ([[EOS, 8], [9]], [[-1.0, -1.0], [-1.0]], "row 0 continues after its end token"),
    ],
)
def test_lists_that_are_no_rollout_are_refused(completions, log_probs, message):
    with pytest.raises(ValueError, match=message):
        rollout_of(
            [[5]],
            completions,
            log_probs,
            num_generations=2,
            eos_token_id=EOS,
            pad_token_id=PAD,
            version=0,
        )


def test_a_rollout_from_lists_ends_at_any_of_several_end_tokens():
    found = rollout_of(
        [[5]],
        [[8, EOS], [9, 7]],
        [[-1.0, -2.0], [-3.0, -1.0]],
        num_generations=2,
        eos_token_id=[EOS, 7],
        pad_token_id=PAD,
        version=0,
    )
    assert found.finish_reasons == ["eos", "eos"]
    with pytest.raises(ValueError, match="row 0 continues after its end token"):
        rollout_of(
            [[5]],
            [[7, 8]],
            [[-1.0, -1.0]],
            num_generations=1,
            eos_token_id=[EOS, 7],
            pad_token_id=PAD,
            version=0,
        )
