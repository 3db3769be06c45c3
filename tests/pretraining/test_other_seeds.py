"""The other trainings of notebook 04: whole trainings of their own, told beside the first."""

from types import SimpleNamespace

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.evaluation.statistics import seed_interval
from moxin_lab.pretraining import results, verdicts
from moxin_lab.scales.sections import PretrainingSettings
from tests.pretraining.test_trainer import make_model, make_settings, make_tokens


def scored(value):
    """What `heldout.compare` gives for two languages."""
    return pd.DataFrame(
        {
            "model": ["trigram", "trigram", results.LAST, results.LAST],
            "group": ["en", "zh"] * 2,
            "bits_per_byte": [2.0, 1.0, value, value],
        }
    )


def weights(models, texts, tokenizer, *, context, seed, device):
    """In place of scores: what tells two trainings apart."""
    (model,) = models.values()
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def train(seed, folder, monkeypatch):
    monkeypatch.setattr(results, "new_model", lambda architecture, seed: make_model())
    pools = {"a": make_tokens(seed=1), "b": make_tokens(seed=2)}
    settings = make_settings(seeds=3)
    shared = (None, pools, pd.DataFrame(), None, settings)
    return results.train_again(*shared, compare=weights, seed=seed, folder=folder)


def test_another_seed_reads_the_documents_in_another_order_and_a_seed_repeats(
    tmp_path, monkeypatch
):
    first, again, other = (
        train(seed, tmp_path / name, monkeypatch)
        for seed, name in ((1, "first"), (1, "again"), (2, "other"))
    )
    assert all(first[name].equal(again[name]) for name in first)
    # the weights start equal in this test, so only the order of documents can differ
    assert not all(first[name].equal(other[name]) for name in first)


def test_each_seed_after_the_first_is_started_with_a_folder_of_its_own(tmp_path, monkeypatch):
    begun = {}

    def start(function, calls, *, shared, own_device):
        begun.update(calls=calls, shared=shared, own_device=own_device)

    monkeypatch.setattr(results.side_by_side, "start", start)
    settings = SimpleNamespace(seeds=3)
    given = (tmp_path, {}, pd.DataFrame(), None, settings)
    results.start_seeds(*given, compare=weights, seed=5, folder=tmp_path)
    assert begun["calls"] == {
        6: {"seed": 6, "folder": tmp_path / "seed_6"},
        7: {"seed": 7, "folder": tmp_path / "seed_7"},
    }
    assert begun["own_device"], "two pretrainings do not fit on one GPU"


def test_the_interval_is_over_trainings_and_one_training_has_none():
    by_language = results.scores_by_language(scored(0.9))
    one = results.over_seeds({0: scored(0.9)}, seed_interval)
    assert list(one.columns) == ["mean", "seed 0"]
    assert results.seeds_in_words(one, by_language, "trigram").startswith("One training")
    assert [number.interval for number in verdicts.of_seeds(one)] == [None, None]

    two = results.over_seeds({0: scored(0.9), 1: scored(1.1)}, seed_interval)
    assert two.loc["zh", ["mean", "seed 0", "seed 1"]].tolist() == pytest.approx([1.0, 0.9, 1.1])
    assert two.loc["zh", "high"] == pytest.approx(1.0 + 12.706 * 0.1, rel=1e-4)
    # in Chinese one of the two is above the trigram's 1.0
    assert "below the trigram in 1 of 2 (en)" in results.seeds_in_words(two, by_language, "trigram")
    assert verdicts.of_seeds(two)[0].labels["trainings"] == 2


def test_several_trainings_and_one_over_all_devices_are_refused_together():
    section = scales.load("small").pretraining.model_dump() | {"seeds": 2}
    section["parallel"] = {"data": 2}
    with pytest.raises(ValueError, match="state one of the two"):
        PretrainingSettings(**section)
