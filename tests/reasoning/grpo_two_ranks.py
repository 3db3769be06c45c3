"""One rank of test_two_processes_learn_what_one_learns: trains as under torchrun and writes each
rank's log and weights.
"""

import sys
from pathlib import Path

import torch

from moxin_lab.reasoning.grpo_trainer import train_grpo
from tests.posttraining.examples import make_model
from tests.reasoning.test_grpo_trainer import PROBLEMS, TOKENIZER, Scripted, letters, make_settings

OPTIONS = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
CASES = {
    "scripted": {"updates_per_rollout": 2, "correction": "decoupled", "micro_batch_examples": 2},
    "resampled": {
        "resample_rounds": 1,
        "prompts_per_step": 3,
        "num_generations": 8,
        "staleness": 1,
        "micro_batch_examples": 4,
    },
    "sampled": {"correction": "naive", "micro_batch_examples": 2, "learning_rate": 1e-3},
}


def engine_of(name):
    """Completions of a script do not depend on who samples them; the last case samples for real
    (None).
    """
    return (
        None
        if name == "sampled"
        else Scripted(lambda row, samples: row % samples % 7 + 1, budget=7, log_prob=-5.5)
    )


def main(folder: Path) -> None:
    for name, changes in CASES.items():
        model = make_model()
        log = train_grpo(
            model,
            TOKENIZER,
            PROBLEMS,
            letters,
            make_settings(**changes),
            seed=0,
            resume_folder=folder / name,
            engine=engine_of(name),
            check_weights=name == "sampled",  # a script has no weights
            trainer_options=OPTIONS,
        )
        rank = torch.distributed.get_rank()
        torch.save(
            {"log": log.to_dict("list"), "weights": model.state_dict()},
            folder / f"{name}_{rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
