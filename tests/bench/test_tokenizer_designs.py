"""Guarantees of `moxin-lab bench tokenizer-designs`: every tokenizer counts the same bytes, every
design trains a model of every seed, and a difference to the baseline has an interval.
"""

import argparse
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.bench import tokenizer_designs as bench
from tests.bench.test_tokenizer import write_documents

DESIGNS = {
    "routed",
    "routed, equal weights",
    "joint BPE",
    "joint BPE, script split",
    "parity-aware BPE",
    "SuperBPE",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder)
    settings = scales.load("tiny").tokenizer.model_copy(
        update={"vocab_size": 420, "min_tokens_per_expert": 0, "english_floor": 0.5}
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(scales, "load", lambda name: argparse.Namespace(tokenizer=settings))
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    small = {"seeds": 2, "steps": 4, "sequences": 1, "pages": 2, "page_bytes": 100}
    options = parser.parse_args(["--documents", str(folder)])
    yield bench.run(argparse.Namespace(**vars(options) | small | {"device": "cpu", "json": None}))
    patch.undo()


def test_every_tokenizer_counts_the_same_bytes(result):
    rows = pd.DataFrame([row for row in result["rows"] if row.get("measure") == "tokens"])
    shipped = set(bench.SHIPPED) if find_spec("quicktok") else set()
    assert set(rows["tokenizer"]) == DESIGNS | shipped | {"Mistral v0.1", "Tekken"}
    rows["bytes"] = (rows["tokens"] * rows["bytes_per_token"]).round()
    assert (rows.groupby(["text", "language"])["bytes"].nunique() == 1).all()
    assert rows["renyi_efficiency"].between(0, 1).all()
    assert set(rows[rows["tokenizer"].isin(DESIGNS)]["ids"]) == {420}


def test_every_design_trains_a_model_of_every_seed_and_is_compared_by_seed(result):
    runs = pd.DataFrame([r for r in result["rows"] if r.get("measure") == "bits per byte, one run"])
    assert set(zip(runs["tokenizer"], runs["seed"], strict=True)) == {
        (name, seed) for name in DESIGNS for seed in (0, 1)
    }
    assert np.isfinite(runs["value"]).all()
    by_run = runs[runs["language"] == "all"].pivot(
        index="seed", columns="tokenizer", values="value"
    )
    assert by_run.nunique().min() == 2, "seeds differ"
    rows = {
        row["tokenizer"]: row
        for row in result["rows"]
        if row.get("measure") == "bits per byte" and row["language"] == "all"
    }
    for name, row in rows.items():
        differences = by_run[name] - by_run["joint BPE"]
        assert row["over_joint_bpe"] == pytest.approx(differences.mean())
        assert row["low"] <= row["over_joint_bpe"] <= row["high"]


def test_parallel_pages_exist_in_every_natural_language():
    train = pd.DataFrame(
        [
            {"language": language, "page": page, "text": f"{language} {page}"}
            for language, pages in {"en": "abc", "ja": "bc", "zh": "cb", "code": "b"}.items()
            for page in pages
        ]
    )
    assert bench.parallel_pages(train, 1) == {"en": ["en b"], "zh": ["zh b"], "ja": ["ja b"]}
