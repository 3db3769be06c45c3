"""Guarantees of `bench pretraining`: its counts, its split, its times."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from moxin_lab.bench import pretraining, pretraining_corpus
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model.config import MoxinConfig, matrix_parameters
from moxin_lab.model.mask import AttentionMask
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.pools import Tokens


def make_stream():
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 40, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = generator.integers(4, 50, offsets[-1]).astype(np.int32)
    tokens = Tokens(ids, offsets, np.ones(30, dtype=np.int64), [str(i) for i in range(30)], 50)
    phase = SimpleNamespace(name="one", steps=3, sequence_length=32, mixture={"a": 1})
    return TrainingStream({"a": tokens}, [phase], tokens_per_step=128, seed=0)


@pytest.mark.parametrize("window", [8, 64])
def test_useful_flops_count_the_pairs_of_the_rows_own_masks(window):
    config = MoxinConfig(vocab_size=50, hidden_size=32, sliding_window=window)
    stream = make_stream()
    found = pretraining.useful_flops(stream, config, range(3))
    for step in range(3):
        documents = torch.from_numpy(stream.batch(step)["document_ids"])
        mask = AttentionMask.build(32, sliding_window=window, document_ids=documents)
        per_pair = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        expected = 6 * matrix_parameters(config) * 128 + per_pair * int(mask.dense.sum())
        assert found[step] == expected


def test_each_text_is_kept_once_and_a_page_with_its_translations_is_on_one_side(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(pretraining_corpus, "HELDOUT_SHARE", 0.2)
    rows = [
        {
            "id": f"{page}/{language}",
            "language": language,
            "source": "small_corpus",
            "project": "p",
            "page": f"page {page}",
            "text": f"text {page % 150} in {language}",
        }
        for page in range(200)
        for language in ("en", "ja", "de")
    ]
    pq.write_table(pa.Table.from_pylist(rows[:300]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[300:]), tmp_path / "b.parquet")
    shards = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pretraining_corpus.curate(shards, ["en", "ja"], tmp_path / "out", 0)
    heldout = pq.read_table(tmp_path / "out" / "heldout.parquet").to_pylist()
    files = sorted((tmp_path / "out").glob("train-*.parquet"))
    train = [row for file in files for row in pq.read_table(file).to_pylist()]
    texts = [row["text"] for row in train + heldout]
    assert len(texts) == len(set(texts)) == 300  # 150 texts in two languages
    pages = {row["page"] for row in train}, {row["page"] for row in heldout}
    assert heldout and not pages[0] & pages[1]
    assert {row["source"] for row in train} == {"p"}


def test_a_data_card_becomes_a_pool_of_its_own_in_a_folder_that_is_new(tmp_path):
    pretraining_corpus.add_source(Path("data_cards/conversations").resolve(), tmp_path / "new")
    rows = pq.read_table(tmp_path / "new" / "train-conversations.parquet").to_pylist()
    assert rows and {row["language"] for row in rows} == {"conversations"}


def test_repeated_finds_the_share_of_tokens_in_13_grams_of_training_text():
    generator = np.random.default_rng(0)
    training = generator.integers(0, 1000, 5000)
    fresh = generator.integers(0, 1000, 40)
    mixed = np.concatenate([training[100:120], fresh[:20]])
    shares = pretraining_corpus.repeated(
        [training[300:340], fresh, mixed, training[7:19], []], [training], "cpu"
    )
    # Twelve tokens are no 13-gram.
    np.testing.assert_allclose(shares, [1, 0, 0.5, 0, 0])


def test_step_times_have_one_interval_less_than_steps_and_ignore_micro_batches():
    times = pretraining.StepTimes("cpu")
    for step in (0, 1, 1, 2, 2, 3):
        times.on_train_batch_end(SimpleNamespace(global_step=step))
    assert len(times.seconds()) == 2


def test_kernels_are_refused_without_a_gpu_before_anything_runs():
    with pytest.raises(LabError, match="give --device cuda"):
        pretraining.run(SimpleNamespace(kernels=True, device="cpu", json=None))
