"""The table of checkpoints: the same items for all, each beside the one it was trained from."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from moxin_lab.evaluation import checkpoints, comparison_figures, results, stage_scores
from moxin_lab.evaluation.statistics import paired_proportions, wilson_interval
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model.convert import CheckpointError
from moxin_lab.stages import stage_info
from moxin_lab.vision import hf
from tests.vision.conftest import byte_tokenizer, tiny_vlm

__all__ = ["byte_tokenizer", "tiny_vlm"]  # fixtures

ARTIFACTS = ("phase_checkpoints", "sft", "instruct", "cot_sft", "reasoning", "vlm", "pretrained")


def sample(item, right):
    return {"doc_id": 0, "doc": {"id": item}, "acc": right, "acc_norm": float(right)}


def result(marks, nats):
    """The part of lm-eval's result structure that the table reads."""
    answers = [sample(f"q{index}", mark) for index, mark in enumerate(marks)]
    return {
        "samples": {
            "moxin_cloze_en": answers,
            "moxin_cloze_code": answers[:6],
            "moxin_translation_ja": answers[2:],
            "moxin_bits_per_byte_en": [
                {"doc_id": i, "doc": {"id": f"d{i}"}, "bits_per_byte": (-each, 100)}
                for i, each in enumerate(nats)
            ],
        }
    }


FOUND = stage_scores.checkpoints(["pretrained", "sft"], Path)
RESULTS = {
    "untrained": result([0] * 12, [300.0, 320.0, 310.0]),
    stage_scores.BASE: result([1] * 12, [150.0, 160.0, 155.0]),
    "SFT": result([1] * 10 + [0, 0], [150.0, 161.0, 154.0]),
}
RIGHT = {"untrained": [0] * 10, stage_scores.BASE: [0] * 10, "SFT": [1] * 9 + [0]}


def test_every_artifact_of_the_scales_is_one_that_the_stage_may_take():
    info = stage_info("08_benchmarks")
    assert {place.artifact for place in stage_scores.CHAIN.values()} <= set(info.inputs)
    assert set(ARTIFACTS) == {place.artifact for place in stage_scores.CHAIN.values()}


def test_each_checkpoint_follows_the_one_it_was_trained_from_if_that_is_there(tmp_path):
    found = stage_scores.checkpoints(ARTIFACTS, lambda name: tmp_path / name)
    assert list(found) == list(stage_scores.CHAIN)
    assert found["phase 2"] == (tmp_path / "phase_checkpoints" / "phase_2", "phase 1")
    assert found["GRPO"] == (tmp_path / "reasoning", "CoT-SFT")
    assert found["VLM, language half"].after == stage_scores.BASE
    after_dpo = stage_scores.checkpoints(
        ["vlm", "instruct", "reasoning"], lambda name: tmp_path / name, vlm_began_from="instruct"
    )
    assert {name: each.after for name, each in after_dpo.items()} == {
        "DPO": "untrained",
        "GRPO": "DPO",
        "VLM, language half": "DPO",
    }
    with pytest.raises(ValueError, match="no checkpoint is called documents"):
        stage_scores.checkpoints(["documents"], lambda name: tmp_path / name)


def test_shares_have_wilsons_interval_and_differences_are_paired_at_a_corrected_level():
    singles, documents = stage_scores.scores(RESULTS, RIGHT), stage_scores.bits(RESULTS)
    shares = stage_scores.shares(singles).set_index(["checkpoint", "benchmark"])
    expected = wilson_interval(10, 12)
    assert tuple(shares.loc[("SFT", "held-out cloze"), ["share", "low", "high"]]) == expected
    assert shares.loc[("SFT", "reasoning questions"), "share"] == 0.9
    assert shares["items"].to_dict()[("SFT", "code completion")] == 6
    steps = stage_scores.differences(singles, documents, FOUND, seed=0)
    assert len(steps) == 2 * 5
    row = steps.set_index(["checkpoint", "benchmark"]).loc[("SFT", "reasoning questions")]
    each = paired_proportions(RIGHT["SFT"], [0] * 10, level=1 - 0.05 / 10)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        tuple(100 * end for end in each)
    )
    assert row["seen"] and row["after"] == stage_scores.BASE
    bits = steps[steps["benchmark"] == "bits per byte"].set_index("checkpoint")
    assert bits.loc[stage_scores.BASE, "seen"] and bits.loc[stage_scores.BASE, "difference"] < -2
    assert not bits.loc["SFT", "seen"]
    said = stage_scores.sentence(steps)
    assert f"Of 10 comparisons, {steps['seen'].sum()} show a difference" in said
    numbers = stage_scores.numbers(shares.reset_index(), steps)
    assert len(numbers) == len(shares) + len(steps)


def test_the_table_has_a_row_for_each_model_and_the_baselines_first():
    singles, documents = stage_scores.scores(RESULTS, RIGHT), stage_scores.bits(RESULTS)
    shares = stage_scores.shares(singles)
    table = stage_scores.table(shares, documents, {"reasoning questions": 0.3})
    assert table.index.tolist() == ["chance", "majority", "untrained", stage_scores.BASE, "SFT"]
    assert table.loc["chance", "held-out cloze"] == "25.0"
    assert table.loc["majority", "reasoning questions"] == "30.0"
    assert table.loc["SFT", "reasoning questions"] == "90.0 (59.6 to 98.2)"
    assert table.loc["untrained", "bits per byte"] == f"{930 / 300 / 0.6931472:.3f}"
    figure = comparison_figures.checkpoints(shares, 0.3)
    dashed = {
        axes.get_title().split(" (")[0]: line.get_xdata()[0]
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_linestyle() == "--"
    }
    assert dashed == pytest.approx(
        {
            "held-out cloze": 25,
            "code completion": 25,
            "translation choice": 25,
            "reasoning questions": 30,
        }
    )
    assert all(len(axes.get_yticks()) == 3 for axes in figure.axes)
    assert "reasoning questions: untrained 0, phase 3 (base) 0, SFT 90" in (
        comparison_figures.checkpoints_alt(shares)
    )


def test_the_caption_names_who_is_above_the_line_with_the_whole_interval():
    rows = [
        ("base", "held-out cloze", 0.30, 0.24, 0.36, 200),
        ("SFT", "held-out cloze", 0.33, 0.27, 0.39, 200),
        ("base", "reasoning questions", 0.25, 0.20, 0.31, 200),
        ("SFT", "reasoning questions", 0.45, 0.38, 0.52, 200),
    ]
    columns = ["checkpoint", "benchmark", "share", "low", "high", "items"]
    said = stage_scores.above_in_words(pd.DataFrame(rows, columns=columns), 0.19)
    assert said == (
        "Above the dashed line with the whole interval: held-out cloze: SFT; "
        "reasoning questions: all."
    )
    said = stage_scores.above_in_words(pd.DataFrame(rows[2:], columns=columns), 0.40)
    assert said.endswith("reasoning questions: none.")


def test_a_vision_language_models_half_is_its_decoder_and_answers_the_same_tasks(
    tiny_vlm, byte_tokenizer, tmp_path
):
    folder = hf.save(tiny_vlm, byte_tokenizer, tmp_path / "vlm")
    half = checkpoints.load_decoder(folder)
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        assert torch.equal(half(ids), tiny_vlm.decoder(ids))
    texts = pd.DataFrame({"id": ["a"], "language": ["en"], "text": ["abc de"], "num_bytes": [6]})
    items = [{"id": f"q{i}", "context": "a", "choices": list("bcde"), "label": i} for i in range(4)]
    tasks = results.write_task_data(tmp_path / "tasks", texts, {"en": items}, {"ja": items})
    found = {"VLM, language half": stage_scores.Checkpoint(folder, "untrained")}
    known = {"untrained": {"samples": {"moxin_cloze_en": [{"doc_id": n} for n in range(9)]}}}
    limits = {"max_length": 64, "batch_tokens": 256, "device": "cpu"}
    chain = stage_scores.run(
        found,
        byte_tokenizer,
        tasks,
        tmp_path,
        limits=limits,
        known=known,
        limit=3,
        progress=lambda *arguments: None,
    )
    assert list(chain) == ["untrained", "VLM, language half"]
    assert len(chain["untrained"]["samples"]["moxin_cloze_en"]) == 3  # the same items for all
    assert len(chain["VLM, language half"]["samples"]["moxin_translation_ja"]) == 3
    assert (tmp_path / "VLM_language_half" / "results_VLM_language_half.json").is_file()
    right = stage_scores.answers(
        found,
        lambda model: [model.config.vocab_size == 260],
        device="cpu",
        progress=lambda *arguments: None,
    )
    assert right == {"VLM, language half": [True]}


def test_a_vision_language_model_without_part_of_its_decoder_is_refused(
    tiny_vlm, byte_tokenizer, tmp_path
):
    from safetensors.torch import load_file, save_file

    folder = hf.save(tiny_vlm, byte_tokenizer, tmp_path / "vlm")
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    del tensors["vlm.decoder.model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 tensors of the decoder .* model\.norm\.weight"):
        checkpoints.load_decoder(folder)
    with pytest.raises(LabError, match=r"model\.norm\.weight"):
        checkpoints.load(folder)
