"""One rank of test_two_processes_...: trains as under torchrun and, on rank 0, writes logs and
weights to a folder.
"""

import json
import sys
from pathlib import Path

import torch

from moxin_lab.posttraining import dpo, sft
from moxin_lab.posttraining.batches import ConversationStream
from moxin_lab.posttraining.chat import Encoded
from moxin_lab.training.fit import fit_language_model
from tests.posttraining.examples import make_model, make_settings

OPTIONS = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}


def main(folder: Path) -> None:
    kept = torch.load(folder / "examples.pt", weights_only=False)
    pairs = [
        dpo.Pair(Encoded(*chosen), Encoded(*rejected), number)
        for number, (chosen, rejected) in enumerate(kept["pairs"])
    ]
    layout = {"examples_per_step": 8, "row_tokens": 255, "seed": 0, "pad_id": 0}
    trainings = {
        "SFT": (
            ConversationStream([Encoded(*one) for one in kept["encoded"]], epochs=2, **layout),
            sft.sft_loss(),
        ),
        "DPO": (
            dpo.PairStream(pairs, kept["reference"], epochs=1, **layout),
            dpo.dpo_loss("dpo_norm", 5.0),
        ),
    }
    for name, (stream, loss) in trainings.items():
        model = make_model()
        log = fit_language_model(
            model,
            stream,
            make_settings(micro_batch_examples=2),
            loss,
            resume_folder=folder / name,
            text=name,
            trainer_options=OPTIONS,
        )
        if torch.distributed.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(log.to_dict("list")))
            torch.save(model.state_dict(), folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
