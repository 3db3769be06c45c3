"""One rank of test_two_ranks_that_one_signal_ends_...: trains whole, is ended, and continues."""

import os
import signal
import sys
from pathlib import Path

import torch

from moxin_lab.pretraining import trainer
from tests.pretraining.test_exactness import DROPOUT, make_stream
from tests.pretraining.test_trainer import make_model, make_settings, weights

OPTIONS = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
STOP = 5


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])

    def end(step: int, total: int, text: str) -> None:
        if step == STOP and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def train(name: str, seed: int, progress=None):
        settings, read = make_settings(micro_batch_tokens=32, checkpoint_every_steps=4), []
        model = make_model(**DROPOUT)
        model.model.embed_tokens.register_forward_pre_hook(
            lambda module, inputs: read.append(inputs[0].clone())
        )
        torch.manual_seed(seed)
        try:
            log = trainer.fit(
                model,
                make_stream(settings),
                settings,
                resume_folder=folder / name,
                save_phase=lambda index: None,
                trainer_options=OPTIONS,
                progress=progress,
            )
        except SystemExit as ended:
            return ended.code
        return {"weights": weights(model), "log": log.to_dict("list"), "read": read}

    whole = train("whole", 7 + rank)
    code = train("ended", 7 + rank, end)
    resumed = train("ended", 99)
    torch.save({"whole": whole, "code": code, "resumed": resumed}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
