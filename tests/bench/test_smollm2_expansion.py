"""SmolLM2 made deeper: the same logits at the start, equal compute, frozen weights, exact
resumption, and verdicts by the stated rule.
"""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import pre_tokenizers

from moxin_lab.bench import smollm2_expansion as bench
from moxin_lab.bench import smollm2_expansion_page as page
from moxin_lab.bench import smollm2_expansion_results as shown
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import gguf_reader
from moxin_lab.model.config import training_flops_per_token
from moxin_lab.model.expansion import RECIPES, expand

BLOCKS, DEEPER, WIDTH, INNER, HEADS = 4, 6, 32, 48, 2
TOKENS = [bench.MARK, "<|im_start|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "11"]


def write_gguf(path: Path) -> Path:
    """A LLaMA-type model with random weights, a tied head and SmolLM2's kind of vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["h e", "1 1"])
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for block in range(BLOCKS):
        shapes |= {
            f"blk.{block}.attn_norm": (WIDTH,),
            f"blk.{block}.attn_q": (WIDTH, WIDTH),
            f"blk.{block}.attn_k": (WIDTH // HEADS, WIDTH),
            f"blk.{block}.attn_v": (WIDTH // HEADS, WIDTH),
            f"blk.{block}.attn_output": (WIDTH, WIDTH),
            f"blk.{block}.ffn_norm": (WIDTH,),
            f"blk.{block}.ffn_gate": (INNER, WIDTH),
            f"blk.{block}.ffn_up": (INNER, WIDTH),
            f"blk.{block}.ffn_down": (WIDTH, INNER),
        }
    for name, shape in shapes.items():
        values = 0.2 * generator.standard_normal(shape) + (1.0 if len(shape) == 1 else 0.0)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def documents(side: str, count: int) -> pa.Table:
    """Made-up words of each language, no 13 of them twice."""
    dice = random.Random(side)
    rows = []
    for language in bench.LANGUAGES:
        letters = {"zh": "天地玄黄宇宙洪荒", "ja": "あいうえおかきく", "ko": "가나다라마바사아"}
        alphabet = letters.get(language, "abcdefgh")
        for number in range(count):
            words = ("".join(dice.choices(alphabet, k=4)) for _ in range(25))
            name = f"{side}/{language}/{number}"
            rows.append(
                {"id": name, "language": language, "source": "made", "page": name}
                | {"text": " ".join(words) + " 1123\n"}
            )
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2")
    (path / "curated").mkdir()
    pq.write_table(documents("train", 24), path / "curated" / "train-00000.parquet")
    pq.write_table(documents("heldout", 16), path / "curated" / "heldout.parquet")
    write_gguf(path / "toy.gguf")
    return path


def make_options(folder: Path, results: Path, **changed: object) -> SimpleNamespace:
    values = {
        "folder": str(folder),
        "gguf": folder / "toy.gguf",
        "blocks": DEEPER,
        "seeds": 2,
        "tokens": 8 * 128,
        "tokens_per_step": 128,
        "sequence_length": 32,
        "rates": "1e-3,1e-2",
        "heldout_bytes": 500,
        "results": str(results),
        "seconds": None,
        "tasks_from": None,
        "task_items": None,
        "processes": 1,
        "not_compiled": False,
        "device": "cpu",
        "json": None,
    }
    return SimpleNamespace(**values | changed)


@pytest.fixture(scope="module")
def setup(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return bench.prepare(make_options(folder, tmp_path_factory.mktemp("setup") / "r.json"))


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    results = tmp_path_factory.mktemp("finished") / "results.json"
    return results, bench.run(make_options(folder, results))


def without_times(rows: list[dict]) -> list[dict]:
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_the_identity_expansion_of_a_tied_model_keeps_every_logit_and_others_do_not(folder):
    start = gguf_reader.from_gguf(folder / "toy.gguf")
    assert start.config.tie_word_embeddings
    ids = torch.randint(len(TOKENS), (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = {
            recipe: torch.equal(start(ids), expand(start, DEEPER, recipe)(ids))
            for recipe in RECIPES
        }
    assert same == {"identity": True, "interleaved": False, "top": False}
    deeper = expand(start, DEEPER, "identity")
    assert deeper.lm_head.weight is deeper.model.embed_tokens.weight


def test_an_identity_expansion_that_changes_a_logit_ends_the_bench(setup, tmp_path, monkeypatch):
    from moxin_lab.model import expansion

    monkeypatch.setattr(expansion, "expand", lambda model, n, recipe: expand(model, n, "top"))
    with pytest.raises(RuntimeError, match="the identity expansion changes logits by up to"):
        bench.measure_starts(setup, bench.Results(tmp_path / "r.json", setup.settings))


def test_digits_are_pieces_of_their_own_and_marks_in_text_are_text(setup):
    tokenizer = setup.tokenizer
    assert tokenizer.encode("he 1123").tokens == ["he", "Ġ", "1", "1", "2", "3"]
    spelled = tokenizer.encode(bench.MARK, add_special_tokens=False).ids
    assert 0 not in spelled and tokenizer.decode(spelled, skip_special_tokens=False) == bench.MARK


def test_every_arm_costs_the_budget_up_to_less_than_one_step(setup):
    steps, flops = setup.settings["steps"], setup.settings["flops_per_token"]
    budget = steps[shown.CONTINUED] * flops[shown.CONTINUED]
    assert steps[shown.CONTINUED] == 8
    for arm in shown.ARMS:
        assert budget - flops[arm] < steps[arm] * flops[arm] <= budget * (1 + 1e-12)
    assert steps["top"] == steps[shown.IDENTITY] < steps[shown.CONTINUED]
    assert flops[shown.ALONE] < flops[shown.IDENTITY]


def test_frozen_weights_cost_what_the_passes_leave_out(setup):
    config = bench.deeper_config(setup.start.config, DEEPER, shown.ARMS[shown.IDENTITY])
    whole = training_flops_per_token(config, 32)
    every = list(range(DEEPER))
    head = config.vocab_size * config.hidden_size
    # All blocks alone: the head's own gradient is what is saved.
    assert bench.flops_per_token(config, 32, every) == pytest.approx(whole - 2 * head)
    assert bench.flops_per_token(config, 32, [DEEPER - 1]) < bench.flops_per_token(config, 32, [0])


def test_only_new_blocks_change_where_they_alone_are_trained(setup):
    engine = bench.engine_of(setup, shown.ARMS[shown.ALONE])
    engine.load(setup.start, "identity")
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    engine.train(bench.batches_of(setup, 0)[:3], 1e-2, "alone")
    changed = {
        int(name.split(".")[2]) if ".layers." in name else name
        for name, value in engine.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == set(setup.settings["new_blocks"][shown.ALONE]) == {2, 5}
    whole = bench.engine_of(setup, shown.ARMS[shown.IDENTITY])
    whole.load(setup.start, "identity")
    whole.train(bench.batches_of(setup, 0)[:3], 1e-2, "all")
    assert all(
        not torch.equal(value, before[name]) for name, value in whole.model.state_dict().items()
    )


def test_arms_of_a_seed_read_the_same_rows_and_halves_share_no_page(setup):
    first, again = bench.batches_of(setup, 1), bench.stream_of(setup, 1)
    assert len(first) == max(setup.settings["steps"].values())
    assert np.array_equal(first[2]["input_ids"], again.batch(2)["input_ids"])
    texts = {half: set(map(tuple, data.heldout)) for half, data in setup.halves.items()}
    assert texts["validation"] and not texts["validation"] & texts["reported"]
    for data in setup.halves.values():
        assert set(data.languages) == set(bench.LANGUAGES)


def test_held_out_pages_that_repeat_training_text_are_left_out(folder, tmp_path):
    (tmp_path / "curated").mkdir()
    train = documents("train", 24)
    pq.write_table(train, tmp_path / "curated" / "train-00000.parquet")
    repeated = train.slice(0, 5).to_pylist()
    copies = [row | {"id": f"{row['id']}/copy"} for row in repeated]
    pages = pa.Table.from_pylist(documents("heldout", 16).to_pylist() + copies)
    pq.write_table(pages, tmp_path / "curated" / "heldout.parquet")
    options = make_options(folder, tmp_path / "r.json", tokens=64 * 128, heldout_bytes=9000)
    options.folder = str(tmp_path)
    made = bench.prepare(options)
    kept = {text for data in made.halves.values() for text in map(tuple, data.heldout)}
    known = {tuple(made.tokenizer.encode(row["text"]).ids) for row in repeated}
    assert len(kept) == 16 * 5 and not kept & known


def test_each_arm_and_seed_has_a_row_at_the_rate_that_validation_chose(finished):
    _, result = finished
    arms = [row for row in result["rows"] if row["row"] == "arm"]
    assert len(arms) == 3 * 2 + 2 + 5  # grids, the other arms of seed 0, seed 1
    for arm in shown.TUNED:
        tried = {r["validation"]: r["learning_rate"] for r in arms if r["arm"] == arm}
        seed_0 = [r["validation"] for r in arms if r["arm"] == arm and r["seed"] == 0]
        assert result["rates"][arm] == tried[min(seed_0)]
    starts = {row["arm"]: row["bits_per_byte"] for row in result["rows"] if row["row"] == "start"}
    assert starts["identity"] == starts["start"] != starts["top"]
    assert all(row["bits_per_byte"] < starts["start"] for row in arms if row["arm"] != shown.ALONE)
    texts = {record["text"] for record in result["differences"]}
    assert texts == {"all", *bench.LANGUAGES}
    assert len(result["verdicts"]) >= 6 and result["verdicts"][0].startswith("continued: ")
    assert not result["not_run"]


def test_a_finished_file_is_read_and_nothing_trained(folder, finished, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(bench.Engine, "train", refuse)
    assert bench.run(make_options(folder, finished[0])) == finished[1]


def test_a_half_finished_file_is_continued_with_the_same_numbers(folder, finished, tmp_path):
    stored = json.loads(finished[0].read_text())
    half = tmp_path / "half.json"
    half.write_text(json.dumps(stored | {"rows": stored["rows"][:8]}))
    resumed = bench.run(make_options(folder, half))
    assert resumed["rows"][:8] == stored["rows"][:8]
    assert without_times(resumed["rows"]) == without_times(finished[1]["rows"])


def test_rows_of_other_settings_are_refused(folder, finished):
    with pytest.raises(LabError, match=r"was made with other settings \(.*steps.*--results"):
        bench.run(make_options(folder, finished[0], tokens=6 * 128))


def test_what_time_does_not_allow_is_listed_and_nothing_is_chosen(folder, tmp_path):
    result = bench.run(make_options(folder, tmp_path / "none.json", seconds=0.0))
    assert not [row for row in result["rows"] if row["row"] == "arm"]
    assert len(result["not_run"]) == 3 * 2 + 2 + 5
    assert "--seconds 0" in result["not_run"][0]["reason"]
    assert "were not all tried" in result["not_run"][-1]["reason"]


def test_tasks_that_cannot_be_scored_are_listed_with_the_reason(folder, tmp_path, finished):
    (tmp_path / "sets").mkdir()
    results = tmp_path / "results.json"
    results.write_text(finished[0].read_text())
    options = make_options(folder, results, tasks_from=str(tmp_path / "sets"))
    result = bench.run(options)
    reasons = {(row["arm"], row["task"]): row["reason"] for row in result["not_run"]}
    assert len(reasons) == 6
    assert "has no set strategyqa" in reasons["start", "moxin_strategyqa"]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-0.1, "better"), (0.1, "worse"), (0.0, "no difference is shown")],
)
def test_a_verdict_follows_from_the_interval_alone(shift, expected):
    noise = {0: 0.001, 1: -0.002, 2: 0.001}
    rows = [
        {"row": "arm", "arm": arm, "seed": seed, "learning_rate": 1e-3, "validation": 1.0}
        | {"bits_per_byte": 1 + seed / 10 + (0 if arm == shown.CONTINUED else shift + noise[seed])}
        | {"by_language": {"en": 1.0}}
        for arm in shown.ARMS
        for seed in range(3)
    ]
    result = shown.summarise(rows, [1e-3])
    lines = [line for line in result["verdicts"] if line.startswith("top against continued")]
    assert len(lines) == 1 and expected in lines[0]
    record = next(record for record in result["differences"] if record["arm"] == "top")
    assert record["mean"] == pytest.approx(shift)
    assert record["interval"][1] - record["mean"] == pytest.approx(4.303 * 0.001)


def test_the_page_has_every_verdict_and_what_was_not_run(finished, tmp_path):
    machine = {"cpu": "a processor", "cores": 2, "date": "2026-01-01", "versions": {"torch": "2"}}
    record = {"bench": "smollm2-expansion", "command": "moxin-lab bench smollm2-expansion"}
    missing = [{"arm": "top", "seed": 2, "learning_rate": 1e-3, "reason": "no time"}]
    content = finished[1] | record | {"device": "cpu", "machine": machine, "not_run": missing}
    (tmp_path / "smollm2-expansion.json").write_text(json.dumps(content))
    text = page.write(tmp_path).read_text()
    for line in finished[1]["verdicts"]:
        assert line in text
    assert "top, seed 2: no time" in text and shown.RULE in text
    assert "<svg" in (tmp_path / "differences.svg").read_text()
