"""One rank of the trainings of test_parallel.py; `jobs.json` in the folder says which."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import parallel, trainer
from tests.pretraining.test_trainer import make_model, make_settings, make_stream

SEED = 5
COMPILE = torch.compile


class AtStart(Callback):
    """Keeps the whole weights before the first step of this attempt."""

    def on_train_start(self, of, module):
        self.weights = parallel.whole_weights(module.model)


def meta_model():
    config = make_model().config
    with torch.device("meta"):
        return MoxinForCausalLM(config)


def make_run_settings():
    return make_settings(micro_batch_tokens=32, checkpoint_every_steps=3)


def run(folder: Path, job: dict) -> None:
    rank, start = int(os.environ["RANK"]), AtStart()

    def end(step: int, total: int, text: str) -> None:
        if step == job.get("stop") and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    if job.get("compiled"):  # all of the compiler but its code generation, which takes minutes
        torch.compile = partial(COMPILE, backend="aot_eager")
    settings, model = make_run_settings(), meta_model()
    try:
        log = trainer.fit(
            model,
            make_stream(settings),
            settings,
            resume_folder=folder / job["points"],
            save_phase=lambda index: None,
            trainer_options={"accelerator": "cpu"},
            progress=end,
            callbacks=[start],
            compiled=job.get("compiled", False),
            parallel=parallel.ParallelSettings(seed=SEED, **job["parallel"]),
        ).to_dict("list")
    except SystemExit as ended:
        log = ended.code
    weights = parallel.whole_weights(model)
    if rank == 0:
        found = {"log": log, "weights": weights, "start": start.weights}
        torch.save(found, folder / f"{job['name']}.pt")


def main(folder: Path) -> None:
    for job in json.loads((folder / "jobs.json").read_text()):
        run(folder, job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
