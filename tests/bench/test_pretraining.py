"""Guarantees of `bench pretraining`: its counts, its split, its times."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from moxin_lab import scales
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


def test_documents_and_their_sides_are_those_of_stage_01(tmp_path):
    documents, out = tmp_path / "documents", tmp_path / "out"
    languages = ("en", "ja", "de")
    rows = [
        {"id": f"{side}/{number}", "source": source, "language": languages[number % 3],
         "page": f"page {number}", "project": "p" if source == "small_corpus" else "",
         "text": f"text {number}"}
        for side, count in (("train", 40), ("heldout", 12))
        for number, source in enumerate(["small_corpus", "conversations"] * count)
    ]  # fmt: skip
    for side in ("train", "heldout"):
        (documents / side).mkdir(parents=True)
        mine = [row for row in rows if row["id"].startswith(side)]
        for name, some in (("00000", mine[::2] + mine[1:9:2]), ("00001", mine[9::2])):
            pq.write_table(pa.Table.from_pylist(some), documents / side / f"{name}.parquet")
    (documents / "funnel.json").write_text("{}")
    pretraining_corpus.curate(scales.load("tiny"), tmp_path, documents, 0)  # there already
    phases = [SimpleNamespace(mixture={"en": 50, "ja": 30, "conversations": 20})]
    pretraining_corpus.take(documents, phases, out)

    def pools(file):
        return {row["id"]: row["language"] for row in pq.read_table(file).to_pylist()}

    wanted = {"train": {}, "heldout": {}, "conversations": {}}
    for row in rows:
        side = row["id"].split("/")[0]
        if row["source"] == "conversations":
            if side == "train":
                wanted["conversations"][row["id"]] = "conversations"
        elif row["language"] != "de":
            wanted[side][row["id"]] = row["language"]
    assert pools(out / "train-00000.parquet") == wanted["train"]
    assert pools(out / "train-conversations.parquet") == wanted["conversations"]
    assert pools(out / "heldout.parquet") == wanted["heldout"]
    assert set(pq.read_table(out / "train-00000.parquet")["source"].to_pylist()) == {"p"}
    phases[0].mixture["fr"] = 1
    with pytest.raises(ValueError, match="fr, which the documents do not have"):
        pretraining_corpus.take(documents, phases, out)


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
