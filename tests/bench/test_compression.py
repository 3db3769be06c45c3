"""The bench of compression: every variant on the same documents, with its size and interval."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moxin_lab import cli
from moxin_lab.bench import compression_page
from moxin_lab.lab import show
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in `model`, documents of stage 01 in `documents`."""
    path = tmp_path_factory.mktemp("compression")
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    vocab = {token: index for index, token in enumerate(alphabet)}
    tokens = Tokenizer(models.BPE(vocab, [("h", "e")]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path / "model")
    config = MoxinConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    generator = torch.Generator().manual_seed(0)
    save_pretrained(MoxinForCausalLM(config, generator=generator), path / "model")
    for side in ("train", "heldout"):
        texts = [f"{side} document {i}: " + "words of help " * 12 for i in range(12)]
        table = {
            "id": [f"{side}-{i}" for i in range(12)],
            "source": ["test"] * 12,
            "language": ["en"] * 12,
            "page": ["p"] * 12,
            "text": texts,
            "num_bytes": [len(text) for text in texts],
        }
        (path / "documents" / side).mkdir(parents=True)
        pq.write_table(pa.table(table), path / "documents" / side / "00000.parquet")
    return path


def words(folder: Path, *more: str) -> list[str]:
    return [
        "bench",
        "compression",
        "--model",
        f"small={folder / 'model'}",
        "--documents",
        str(folder / "documents"),
        *("--heldout", "8", "--document-bytes", "120", "--calibration", "2", "--tokens", "64"),
        *("--shares", "0.5,0.9", "--device", "cpu", *more),
    ]


def test_each_variant_is_scored_and_weighed_and_the_curve_is_drawn(
    folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "curve.svg"
    out = tmp_path / "out.json"
    assert cli.main(words(folder, "--json", str(out), "--picture", str(picture))) == 0
    record = json.loads(out.read_text())
    rows = {(row["variant"], round(row.get("zeros", 0), 1)): row for row in record["rows"]}
    dense = rows["dense", 0.0]
    assert dense["difference"] == 0 and dense["bytes_share"] == 1
    assert record["settings"]["heldout_documents"] == 8
    assert record["settings"]["heldout_bytes"] == 8 * 120
    for variant in ("magnitude", "wanda", "magnitude 2:4", "wanda 2:4"):
        row = rows[variant, 0.5]
        assert row["bytes"] < dense["bytes"]
        assert row["low"] < row["bits_per_byte"] < row["high"]
        difference = row["bits_per_byte"] - dense["bits_per_byte"]
        assert row["difference"] == pytest.approx(difference) and difference != 0
    # 14 matrices; per block 2 x 32 x 32 + 2 x 16 x 32 + 3 x 32 x 64 numbers of 4 bytes, of which
    # half stay with two bits each.
    numbers = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    saved = dense["bytes"] - rows["wanda 2:4", 0.5]["bytes"]
    assert saved == numbers * 4 - (numbers // 2 * 4 + numbers // 2 * 2 // 8)
    assert rows["gguf-q4_0", 0]["bytes"] < rows["gguf-q8_0", 0]["bytes"] < dense["bytes"]
    for variant in ("torchao-int8", "torchao-int4"):  # an extra: measured, or with the reason
        row = rows[variant, 0]
        assert "bits_per_byte" in row or "needs the package torchao" in row["reason"]
    svg = picture.read_text()
    assert "wanda" in svg and "held-out bits per byte" in svg
    page = compression_page.write(tmp_path).read_text()  # of every record in the folder
    assert f"| wanda 2:4 50% | {show.format_bytes(rows['wanda 2:4', 0.5]['bytes'])} |" in page
    assert (tmp_path / "curve.svg").exists() and "At 2:4 " in page
    again = tmp_path / "again.svg"
    assert cli.main(words(folder, "--from-json", str(out), "--picture", str(again))) == 0
    assert again.read_text() == svg


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "small"], "--model small: write NAME=FOLDER"),
        (["--shares", "0.5,1.5"], "--shares: '1.5' is no share between 0 and 1"),
        (["--languages", "ja"], "0 documents of ja in heldout"),
        (["--calibration", "900"], "the training text has"),
        (["--documents", "none"], "--documents: none/heldout has no parquet file"),
        (["--from-json", "none.json"], "none.json is no record of this bench"),
    ],
)
def test_wrong_options_are_refused(folder: Path, capsys, more: list[str], message: str) -> None:
    assert cli.main(words(folder, *more)) == 1
    assert message in capsys.readouterr().err


def test_the_page_says_what_the_intervals_say() -> None:
    def row(variant: str, difference: float, half: float = 0.1, zeros: float = 0.5) -> dict:
        sides = {"difference_low": difference - half, "difference_high": difference + half}
        bits = {"bits_per_byte": 1 + difference, "difference": difference}
        return {"variant": variant, "zeros": zeros, **bits, **sides}

    said = compression_page.findings(
        [
            row("dense", 0.0, 0.0, zeros=0.0),
            {"variant": "torchao-int8", "reason": "this needs the package torchao"},
            row("gguf-q8_0", 0.05, zeros=0.0),
            row("magnitude", 0.9),
            row("wanda", 0.3),
            row("magnitude 2:4", 0.5),
            row("wanda 2:4", 0.4),
        ]
    )
    assert said == [
        "No difference to dense was seen for gguf-q8_0.",
        "At 50% of zeros wanda loses less, 0.3000 against 0.9000; the intervals of the two do "
        "not overlap.",
        "At 2:4 wanda loses less, 0.4000 against 0.5000; the intervals of the two overlap.",
    ]
