"""Our `LM` gives the same numbers as lm-evaluation-harness's HFLM, and runs the local tasks."""

import json
import math

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from moxin_lab.evaluation.bits_per_byte import document_losses
from moxin_lab.evaluation.harness import TASKS_FOLDER, MoxinLM, NGramLM, run_tasks, write_results
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.model.convert import from_pretrained

TEXTS = [
    "The window slides over the text, and the cache rolls with it.",
    "A short one.",
    "ページの続きを選ぶ問題です。四つの中から一つを選びます。",
    "def answer(question):\n    return [word for word in question.split() if word]\n",
    "창은 본문 위로 미끄러진다. " * 8,
    "12345",
]
MAX_LENGTH = 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Mistral checkpoint with a byte-level BPE tokenizer.

    Its special tokens have the ids that they have in our tokenizer.
    """
    folder = tmp_path_factory.mktemp("checkpoint")
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    return MoxinLM(from_pretrained(checkpoint), tokenizer, max_length=MAX_LENGTH, batch_tokens=300)


def theirs(checkpoint, **options):
    return HFLM(
        pretrained=str(checkpoint),
        device="cpu",
        dtype="float32",
        batch_size=3,
        max_length=MAX_LENGTH,
        **options,
    )


def instances(kind, arguments):
    return [
        Instance(kind, {}, args, i, metadata=("test", i, 1)) for i, args in enumerate(arguments)
    ]


def test_loglikelihood_equals_hflm(ours, checkpoint):
    pairs = [(a, b) for a in TEXTS for b in (" yes", "続き", "\n  x = 1", ", and so on")]
    pairs += [
        ("", "alone"),
        ("trailing space ", "word"),
        ("<s>already begun", " by bos"),
        (TEXTS[4] * 2, TEXTS[0]),
    ]
    before = ours.truncated_requests
    actual = ours.loglikelihood(instances("loglikelihood", pairs))
    expected = theirs(checkpoint, add_bos_token=True).loglikelihood(
        instances("loglikelihood", pairs)
    )
    np.testing.assert_allclose([x for x, _ in actual], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]
    assert ours.truncated_requests > before, (
        "the last pair is longer than max_length and must be counted"
    )


def test_is_greedy_is_true_for_the_models_own_continuation(ours, checkpoint):
    token = ours.model(torch.tensor([ours.tok_encode("A short one")]))[0, -1].argmax()
    pair = ("A short one", ours.tokenizer.decode([token]))
    assert ours.loglikelihood(instances("loglikelihood", [pair]))[0][1] is True
    assert (
        theirs(checkpoint, add_bos_token=True).loglikelihood(instances("loglikelihood", [pair]))[0][
            1
        ]
        is True
    )


def test_loglikelihood_rolling_equals_hflm(ours, checkpoint):
    texts = [(text,) for text in [*TEXTS, TEXTS[4] * 3]]
    assert len(ours.tok_encode(texts[-1][0])) > 2 * MAX_LENGTH
    actual = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    expected = theirs(checkpoint, add_bos_token=False).loglikelihood_rolling(
        instances("loglikelihood_rolling", texts)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-4)


def test_rolling_equals_document_losses_where_a_document_fits_one_window(ours):
    texts = [text for text in TEXTS if len(ours.tok_encode(text)) <= MAX_LENGTH]
    tokens = [ours.tok_encode(text, add_special_tokens=False) for text in texts]
    rolling = ours.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in texts])
    )
    assert len(texts) >= 3
    np.testing.assert_allclose(
        -np.array(rolling), document_losses(ours.model, tokens, context=MAX_LENGTH), rtol=1e-6
    )


def test_greedy_generate_until_equals_hflm(ours, checkpoint):
    options = {"do_sample": False, "max_gen_toks": 12}
    requests = [
        (text, {"until": stops, **options}) for text in TEXTS for stops in (["\n\n"], ["e", "。"])
    ]
    actual = ours.generate_until(instances("generate_until", requests))
    expected = theirs(checkpoint, add_bos_token=True).generate_until(
        instances("generate_until", requests)
    )
    assert actual == expected
    assert any(actual)


def test_sampling_and_impossible_lengths_are_refused(ours):
    with pytest.raises(ValueError, match="greedy"):
        ours.generate_until(
            instances(
                "generate_until", [("a", {"until": [], "do_sample": True, "temperature": 1.0})]
            )
        )
    with pytest.raises(ValueError, match="no room"):
        ours.generate_until(
            instances("generate_until", [("a", {"until": [], "max_gen_toks": MAX_LENGTH})])
        )
    with pytest.raises(ValueError, match="does not fit max_length"):
        ours.loglikelihood(instances("loglikelihood", [("a", TEXTS[4] * 3)]))


@pytest.fixture
def task_data(tmp_path):
    pages = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)] + [
        {"id": "number", "text": "2026"}
    ]
    lines = [json.dumps(page, ensure_ascii=False) for page in pages]
    (tmp_path / "moxin_bits_per_byte_en.jsonl").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )
    items = [
        {
            "id": str(i),
            "context": TEXTS[0],
            "choices": ["\nA short one.", "\nwindow", "\n12", "\ntext"],
            "label": i % 4,
        }
        for i in range(8)
    ]
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    (tmp_path / "moxin_cloze_en.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_tasks_run_through_the_harness_and_agree_with_direct_computation(ours, task_data, tmp_path):
    results = run_tasks(ours, ["moxin_bits_per_byte_en", "moxin_cloze_en"], task_data)
    texts = [*TEXTS, "2026"]
    nats = -sum(
        ours.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]))
    )
    num_bytes = sum(len(text.encode()) for text in texts)
    assert results["results"]["moxin_bits_per_byte_en"]["bits_per_byte,none"] == pytest.approx(
        nats / num_bytes / math.log(2)
    )
    cloze = results["results"]["moxin_cloze_en"]
    assert cloze["acc,none"] == 0.25  # the same item with each of the four labels twice
    assert cloze["acc_stderr,none"] > 0
    assert results["n-samples"]["moxin_cloze_en"]["effective"] == 8


def test_results_are_written_as_the_same_bytes_each_time_and_name_no_path(
    ours, task_data, tmp_path
):
    contents = []
    for name in ("first", "second"):
        write_results(run_tasks(ours, ["moxin_cloze_en"], task_data), tmp_path / name, "trained")
        contents.append(
            {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
        )
    assert sorted(contents[0]) == ["results_trained.json", "samples_moxin_cloze_en_trained.jsonl"]
    for name, content in contents[0].items():
        assert str(tmp_path).encode() not in content
        assert content == contents[1][name]


def test_missing_task_data_is_named(ours, tmp_path):
    with pytest.raises(FileNotFoundError, match="moxin_cloze_zh"):
        run_tasks(ours, ["moxin_cloze_zh"], tmp_path)


def test_the_ngram_baseline_runs_under_the_same_interface(ours):
    train = [ours.tok_encode(text, add_special_tokens=False) for text in TEXTS]
    ngram = NGram.fit(train, order=3, vocab_size=len(ours.tokenizer))
    lm = NGramLM(ngram, ours.tokenizer)
    rolling = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    )
    np.testing.assert_allclose(-np.array(rolling), ngram.document_losses(train))
    pair = ("A short", " one.")
    total, context = (
        ours.tok_encode(text, add_special_tokens=False) for text in ("A short one.", "A short")
    )
    expected = np.diff(ngram.document_losses([total, context]))[0]
    assert lm.loglikelihood(instances("loglikelihood", [pair]))[0][0] == pytest.approx(expected)


def test_the_harness_finds_every_task_file():
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    languages = ("en", "zh", "ja", "ko", "code")
    assert {
        f"moxin_{kind}_{language}" for kind in ("bits_per_byte", "cloze") for language in languages
    } <= set(manager.all_tasks)
