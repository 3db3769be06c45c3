"""A small model as a folder for the tests of moxin_lab.serving."""

import string

import torch

from moxin_lab.model import convert
from tests.posttraining.examples import make_model, make_tokenizer


def write_model(folder, seed=0, **changes):
    """A folder as stage 05 leaves it, with a tokenizer of one token per byte. The model writes
    ASCII, so that its texts can be read and compared.
    """
    tokenizer = make_tokenizer()
    shape = {"sliding_window": 64, "max_position_embeddings": 512, **changes}
    model = make_model(seed, **shape)
    written = tokenizer(string.ascii_letters + string.digits + " .,\n")["input_ids"]
    others = torch.ones(len(tokenizer), dtype=torch.bool)
    others[written] = False
    with torch.no_grad():
        model.lm_head.weight[others] = 0
        model.lm_head.weight *= 2
    convert.save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    return folder
