"""One rank of test_two_processes_...: trains as under torchrun and, on rank 0, writes its log and weights to a folder."""

import json
import sys
from pathlib import Path

import torch
from posttraining_examples import make_model, make_settings

from moxin_lab.posttraining import fitting, sft
from moxin_lab.posttraining.batches import ConversationStream
from moxin_lab.posttraining.chat import Encoded


def main(folder: Path) -> None:
    encoded = [Encoded(*arrays) for arrays in torch.load(folder / "encoded.pt", weights_only=False)]
    stream = ConversationStream(encoded, examples_per_step=8, epochs=2, row_tokens=255, seed=0, pad_id=0)
    model = make_model()
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    log = fitting.fit(
        model, stream, make_settings(micro_batch_examples=2), sft.sft_loss(), resume_folder=folder, text="SFT",
        trainer_options=options,
    )  # fmt: skip
    if torch.distributed.get_rank() == 0:
        (folder / "log.json").write_text(json.dumps(log.to_dict("list")))
        torch.save(model.state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
