"""What a release says of its weights is measured on the bytes that it holds."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from moxin_lab import scales
from moxin_lab.evaluation import released
from moxin_lab.model import convert

MODEL = Path(__file__).parents[2] / "release" / "moxin-lab-small" / "model"
TEXTS = {
    "en": "Choose a cell and click the button. The dialog opens and shows the formula. " * 6,
    "code": "def add(a, b):\n    return a + b\n\n" * 12,
}


@pytest.fixture
def documents(tmp_path):
    """A folder as stage 01 leaves it, with two languages."""
    for side in ("train", "heldout"):
        rows = [
            {"id": f"{side}-{language}-{n}", "source": "s", "language": language, "page": str(n)}
            | {"text": f"{n} {text}", "num_bytes": len(f"{n} {text}".encode())}
            for language, text in TEXTS.items()
            for n in (2, 1, 3)
        ]
        (tmp_path / side).mkdir()
        pd.DataFrame(rows).to_parquet(tmp_path / side / "00000.parquet")
    return tmp_path


def test_stored_weights_are_the_given_ones_rounded_to_bfloat16_and_half_the_size(tmp_path):
    model = convert.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 2**-12)  # not a value of bfloat16
    convert.save_pretrained(model, tmp_path / "float32")
    released.store(tmp_path / "float32", tmp_path / "bfloat16")
    wide = load_file(tmp_path / "float32" / "model.safetensors")
    narrow = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert wide.keys() == narrow.keys()
    assert all(torch.equal(wide[name].bfloat16(), narrow[name]) for name in wide)
    sizes = [
        (tmp_path / kind / "model.safetensors").stat().st_size for kind in ("float32", "bfloat16")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_scores_are_of_the_stored_bytes_beside_an_untrained_model_and_a_trigram(
    documents, tmp_path
):
    settings = scales.load("tiny").evaluation.model_copy(update={"languages": tuple(TEXTS)})
    broken = convert.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        broken.lm_head.weight.zero_()
    convert.save_pretrained(broken, tmp_path / "broken")
    table = released.scores(
        {"final": MODEL, "broken": tmp_path / "broken"}, documents, MODEL, settings, seed=0
    )
    bits = table.set_index(["group", "model"])["bits_per_byte"]
    assert set(table["model"]) == {"final", "broken", "untrained", "trigram"}
    assert (table["documents"] == 3).all()
    for language in TEXTS:
        assert bits[language, "final"] < bits[language, "broken"]
        assert bits[language, "final"] < bits[language, "untrained"]


def test_continuations_are_of_the_first_document_by_id_and_the_same_each_time(documents):
    first = released.continuations(MODEL, documents, list(TEXTS))
    assert list(first["language"]) == list(TEXTS)
    assert list(first["document"]) == ["heldout-en-1", "heldout-code-1"]
    assert first["prompt"].str.startswith("1 ").all() and first["continuation"].str.len().min() > 0
    pd.testing.assert_frame_equal(first, released.continuations(MODEL, documents, list(TEXTS)))
