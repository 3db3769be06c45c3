"""Notebook 04 over two ranks of torchrun, ended in the middle and run again, is one training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moxin_lab import scales
from moxin_lab.lab import working_copy
from moxin_lab.lab.artifacts import describe, read_record, write_json
from moxin_lab.lab.environment import describe_environment
from moxin_lab.model import convert
from moxin_lab.model.config import MoxinConfig
from moxin_lab.pretraining import parallel, results, trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.stages import STAGES

TOLERANCE = 1e-4  # of each step's loss, relative, as in test_parallel.py
STOP = 6  # the step after which SIGTERM is sent
SCALE = """
extends: tiny
pretraining:
  phases:
    - {name: short, steps: 60, sequence_length: 32, mixture: {en: 60, zh: 40}}
    - {name: long, steps: 20, sequence_length: 64, mixture: {en: 60, zh: 40}}
    - {name: other, steps: 20, sequence_length: 64, mixture: {en: 20, zh: 80}}
  tokens_per_step: 512
  micro_batch_tokens: 256
  warmup_steps: 2
  checkpoint_every_steps: 1000
  heldout_bytes_per_language: 600
  parallel: {data: 2, activation_checkpointing: full}
"""
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 64,
    "max_position_embeddings": 128,
}


def write_artifacts(root: Path) -> None:
    """What stages 01 to 03 leave, of made-up text, with their records."""
    runs = root / "runs" / "ranks"
    generator = np.random.default_rng(0)
    words = {
        "en": ["the", "model", "reads", "a", "row", "of", "text", "and", "learns"],
        "zh": ["模", "型", "读", "文", "本"],
    }
    rows = [
        {
            "id": f"{side}-{language}-{number}",
            "source": "made_up",
            "language": language,
            "text": " ".join(generator.choice(words[language], 40)),
        }
        for side, count in (("train", 60), ("heldout", 4))
        for language in words
        for number in range(count)
    ]
    table = pd.DataFrame(rows)
    table["num_bytes"] = [len(text.encode()) for text in table["text"]]
    documents = runs / "01_data_curation" / "documents"
    for side in ("train", "heldout"):
        (documents / side).mkdir(parents=True)
        part = table[table["id"].str.startswith(side)]
        part.to_parquet(documents / side / "00000.parquet", index=False)
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    bpe.train_from_iterator(
        table["text"],
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet),
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    tokenizer.save_pretrained(runs / "02_tokenizer" / "tokenizer")
    MoxinConfig(vocab_size=len(tokenizer), **SHAPE).save(runs / "03_model" / "architecture")
    about = describe_environment(root)
    for info in STAGES[:3]:
        outputs = {name: describe(runs / info.name / name) for name in info.leaves}
        record = {"stage": info.name, "scale": "ranks", "key": None, "key_parts": None}
        record |= {"inputs": {}, "outputs": outputs, "measures": [], "claims": []}
        record |= {"environment": about, "seconds": 0.0, "peak_memory_bytes": 0, "seed": 0}
        record |= {"title": info.title, "decides_as": "tiny", "state": "done", "data_cards": {}}
        record |= {"parameters": {"scale": "ranks", "seed": 0}, "settings": {}}
        record |= {"finished_at": "2026-01-01T00:00:00Z"}
        write_json(runs / info.name / "stage.json", record)


@pytest.fixture(scope="module")
def root(tmp_path_factory, repository):
    root = tmp_path_factory.mktemp("lab")
    working_copy.fill(root, repository)
    (root / "scales").mkdir()
    (root / "scales" / "ranks.yaml").write_text(SCALE)
    write_artifacts(root)
    return root


def start(root: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["--shutdown-timeout", "120", "-m", "moxin_lab.cli", "--root", str(root)]
        + ["run", "--scale", "ranks", "--only", "04"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def one_process(root: Path) -> pd.DataFrame:
    """The log of the same training in this process, from the same weights, not sharded."""
    settings = scales.load(root / "scales" / "ranks.yaml").pretraining
    runs = root / "runs" / "ranks"
    train, _ = results.read_documents(runs / "01_data_curation" / "documents", settings)
    tokenizer = results.read_tokenizer(runs / "02_tokenizer" / "tokenizer")
    pools = results.tokenize(train, tokenizer, settings, lambda *done: None)
    size = settings.tokens_per_step
    stream = TrainingStream(pools, settings.phases, tokens_per_step=size, seed=0)
    model = results.new_model(runs / "03_model" / "architecture", 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(parallel.initial_weight(model.config, name, weight.shape, 0, "cpu"))
    options = {"accelerator": "cpu"}
    ends = {"resume_folder": None, "save_phase": lambda index: None}
    return trainer.fit(model, stream, settings, trainer_options=options, **ends)


def test_two_ranks_ended_and_run_again_leave_one_record_and_the_curve_of_one_process(root):
    folder = root / "runs" / "ranks" / "04_pretraining"
    process = start(root)
    progress = folder / ".progress.json"
    while process.poll() is None:
        if progress.exists():
            state = json.loads(progress.read_text())
            if "loss" in state["text"] and STOP <= state["step"] < 80:
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0, out
    assert "the next run resumes at the stage" in out, out
    points = list(folder.glob(".scratch/*/resume-*.ckpt"))
    assert len(points) == 1 and points[0].is_dir(), out  # none was due
    assert read_record(root, "ranks", "04_pretraining") is None

    process = start(root)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    record = read_record(root, "ranks", "04_pretraining")
    text = json.dumps(json.loads((folder / "notebook.ipynb").read_text()), ensure_ascii=False)
    assert "2 attempt(s) on 2 x this processor" in text  # it went on from the resume point
    assert record["key"] and len(list(folder.rglob("stage.json"))) == 1
    log = pd.read_parquet(folder / "training_log" / "steps.parquet")
    expected = one_process(root)
    assert log["step"].tolist() == expected["step"].tolist()
    np.testing.assert_allclose(log["loss"], expected["loss"], rtol=TOLERANCE)
    assert log["targets"].tolist() == expected["targets"].tolist()
    for path in ("pretrained", "phase_checkpoints/phase_1", "phase_checkpoints/phase_2"):
        model = convert.from_pretrained(folder / path)
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
        assert (folder / path / "tokenizer.json").is_file()
    assert not (folder / ".scratch").exists()
    assert (root / "reports" / "ranks" / "04_pretraining.html").is_file()


def test_a_layout_that_was_not_started_is_refused_with_the_command(root):
    settings = scales.load(root / "scales" / "ranks.yaml").pretraining
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 --no-python moxin-lab run"):
        parallel.layout(settings, 0)
    assert parallel.layout(scales.load("tiny").pretraining, 0) is None
