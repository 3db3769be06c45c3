"""Our `LM` gives the same numbers as lm-evaluation-harness's HFLM, and runs the local tasks."""

import copy
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from moxin_lab.evaluation.bits_per_byte import document_losses
from moxin_lab.evaluation.harness import (
    TASKS_FOLDER,
    fit_trigram,
    run_tasks,
    worked_item,
    write_results,
)
from moxin_lab.evaluation.language_models import MoxinLM, NGramLM
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import Request
from moxin_lab.model.convert import from_pretrained
from moxin_lab.model.generate import generate
from tests.evaluation.tiny import save_mistral

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
    save_mistral(folder, tokenizer, bos=1, eos=2, pad=3)
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


def test_choices_of_one_token_share_one_row_and_equal_hflm(ours, checkpoint, monkeypatch):
    contexts = [text.rstrip() for text in TEXTS]
    pairs = [(context, choice) for context in contexts for choice in "abcd"]
    rows = []
    forward = ours.model.forward
    monkeypatch.setattr(
        ours.model, "forward", lambda ids, *a, **k: rows.append(len(ids)) or forward(ids, *a, **k)
    )
    actual = ours.loglikelihood(instances("loglikelihood", pairs))
    assert sum(rows) == len(contexts)
    expected = theirs(checkpoint).loglikelihood(instances("loglikelihood", pairs))
    np.testing.assert_allclose([x for x, _ in actual], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]


def test_requests_of_any_lengths_that_share_a_row_get_their_own_scores(ours):
    tokens = ours.tok_encode(TEXTS[0])[:20]
    requests = [
        Request([*tokens[:-1], last], count) for last in (5, 9, tokens[-1]) for count in (1, 4, 19)
    ]
    together = ours.score_tokens([*requests, Request(tokens[:9], 3), requests[0]])
    for request, result in zip(
        [*requests, Request(tokens[:9], 3), requests[0]], together, strict=True
    ):
        alone = ours.score_tokens([request])[0]
        assert result.nats == pytest.approx(alone.nats, rel=1e-5)
        assert result.is_greedy == alone.is_greedy


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("names_bos", [True, False])
def test_bos_is_what_the_tokenizer_says_as_in_hflm(checkpoint, tmp_path, adds_bos, names_bos):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    if not adds_bos:
        tokenizer._tokenizer.post_processor = processors.ByteLevel()
    if not names_bos:
        tokenizer.bos_token = None
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = MoxinLM(
        from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), max_length=MAX_LENGTH
    )
    assert (lm.tok_encode("12345")[0] == 1) == adds_bos
    hflm = theirs(tmp_path)
    pairs = [("", "alone"), *[(text, " yes") for text in TEXTS]]
    for kind, arguments, options in (
        ("loglikelihood", pairs, {}),
        ("loglikelihood_rolling", [(text,) for text in TEXTS], {"add_bos_token": False}),
    ):
        if options and adds_bos:
            hflm = theirs(tmp_path, **options)  # see the module's docstring
        actual, expected = (
            np.array(getattr(each, kind)(instances(kind, arguments)), dtype=float)
            for each in (lm, hflm)
        )
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_special_token_that_a_text_spells_is_text(ours):
    for text in ("a </s> b", "<s>", "<s>already begun", "<unk><pad>"):
        assert ours.tok_encode(text)[0] == 1
        assert not {0, 1, 2, 3} & set(ours.tok_encode(text)[1:])
        assert ours.tokenizer.decode(ours.tok_encode(text)[1:]) == text


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
        -np.array(rolling),
        document_losses(ours.model, tokens, context=MAX_LENGTH, bos_id=1),
        rtol=1e-6,
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


@pytest.fixture(scope="module")
def babbler(checkpoint, tmp_path_factory):
    """The checkpoint with a liking for special tokens, so that it writes all of them."""
    folder = tmp_path_factory.mktemp("babbler")
    model = MistralForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        model.lm_head.weight[[0, 1, 3]] *= 3.0
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def test_stop_sequences_of_every_kind_of_token_equal_hflms(babbler):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(babbler)
    lm = MoxinLM(from_pretrained(babbler), tokenizer, max_length=MAX_LENGTH)
    hflm = theirs(babbler)
    hflm.batch_size_per_gpu = 1  # in a batch, HFLM writes on until every row has stopped
    options = {"do_sample": False, "max_gen_toks": 12}
    free = [(text, {"until": [], **options}) for text in TEXTS]
    stops = [["<unk>"], ["<s>"], ["<pad>"], ["</s>"], ["<s", "d>"], ["\n\n", "<unk><s>"], [""]]
    words = lm.generate_until(instances("generate_until", free))
    stops += [
        [word[i : i + n]]
        for word in words
        for i, n in ((0, 1), (1, 2), (2, 3), (3, 9))
        if word[i : i + n]
    ]
    requests = [(text, {"until": stop, **options}) for text in TEXTS for stop in stops]
    actual = lm.generate_until(instances("generate_until", requests))
    expected = hflm.generate_until(instances("generate_until", requests))
    assert actual == expected
    by_stop = {stop[0]: actual[i :: len(stops)] for i, stop in enumerate(stops)}
    for special in ("<unk>", "<s>", "<pad>"):  # each of them cuts some answer
        assert by_stop[special] != by_stop[""], special


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_generation_ends_at_every_end_token_that_the_folder_names_as_hflm_does(
    checkpoint, tmp_path, file
):
    for path in checkpoint.iterdir():
        shutil.copy(path, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    options = {"until": [], "do_sample": False, "max_gen_toks": 12}
    requests = instances("generate_until", [(text, options) for text in TEXTS])
    model = from_pretrained(tmp_path)
    endless = MoxinLM(model, tokenizer, max_length=MAX_LENGTH).generate_until(requests)
    prompt = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    written = generate(model, prompt, max_new_tokens=12)[0, prompt.shape[1] :].tolist()
    end = written[4]  # an ordinary token, which HFLM keeps in the text
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()  # transformers then reads config.json
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**config, "eos_token_id": [2, end]}))
    lm = MoxinLM(from_pretrained(tmp_path), tokenizer, max_length=MAX_LENGTH, batch_tokens=300)
    assert lm.end_ids == {2, end}
    hflm = theirs(tmp_path)
    hflm.batch_size_per_gpu = 1
    actual = lm.generate_until(requests)
    assert actual == hflm.generate_until(requests)
    assert actual[0] == tokenizer.decode(written[: written.index(end) + 1])
    assert actual != endless


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"bad_words_ids": [[1]], "max_length": 9}, r"bad_words_ids=\[\[1\]\], max_length=9"),
    ],
)
def test_generation_options_that_are_not_followed_are_refused_by_name(ours, options, named):
    with pytest.raises(ValueError, match=f"does not follow {named}"):
        ours.generate_until(instances("generate_until", [("a", {"until": [], **options})]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"num_beams": 4, "suppress_tokens": [5]}, r"num_beams=4, suppress_tokens=\[5\]"),
        ({"a_new_option": 1}, "a_new_option=1"),
    ],
)
def test_options_of_the_models_folder_that_change_a_greedy_text_are_refused(
    checkpoint, tmp_path, options, named
):
    for path in checkpoint.iterdir():
        shutil.copy(path, tmp_path)
    harmless = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": None}
    file = tmp_path / "generation_config.json"
    config = json.loads(file.read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    lm = MoxinLM(from_pretrained(tmp_path), tokenizer, max_length=MAX_LENGTH)
    greedy = {"until": [], "do_sample": False, "max_gen_toks": 12}
    requests = instances("generate_until", [(text, greedy) for text in TEXTS])
    expected = lm.generate_until(requests)
    file.write_text(json.dumps({**config, **harmless}))
    assert lm.generate_until(requests) == expected == theirs(tmp_path).generate_until(requests)
    file.write_text(json.dumps({**config, **harmless, **options}))
    with pytest.raises(ValueError, match=f"does not follow {named} of .*generation_config.json"):
        lm.generate_until(requests)
    if "repetition_penalty" in options:  # HFLM follows it, and a task's own value comes first
        assert theirs(tmp_path).generate_until(requests) != expected
        plain = [(text, {**greedy, "repetition_penalty": 1.0}) for text in TEXTS]
        assert lm.generate_until(instances("generate_until", plain)) == expected


def test_options_that_ask_for_greedy_decoding_are_taken(ours):
    plain, spelled = (
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 4, **options})]))
        for options in (
            {},
            {"num_beams": 1, "repetition_penalty": 1.0, "top_p": 0.9, "temperature": 0.0},
        )
    )
    assert plain == spelled


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


def test_an_item_worked_through_is_scored_as_the_harness_scores_it(ours, task_data):
    samples = run_tasks(ours, ["moxin_cloze_en"], task_data)["samples"]["moxin_cloze_en"]
    for sample in samples:
        table = worked_item(ours, sample["doc"])
        nats = [float(pair[0]) for pair in sample["filtered_resps"]]
        assert table["log-likelihood"].tolist() == pytest.approx(nats, abs=1e-4)
        for metric in ("acc", "acc_norm"):
            (chosen,) = [
                row for row in table.to_dict("records") if metric in row["chosen by"].split(", ")
            ]
            assert (chosen["truth"] == "correct") == bool(sample[metric])


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
    size = len(ours.tokenizer)
    with pytest.raises(ValueError, match="fitted with bos id 2, and the tokenizer puts 1"):
        NGramLM(NGram.fit(train, order=3, vocab_size=size, bos_id=2), ours.tokenizer)
    ngram = NGram.fit(train, order=3, vocab_size=size, bos_id=1)
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


def test_the_trigram_begins_a_text_with_what_the_model_is_given(ours):
    """bos, or eos where the tokenizer names no bos."""
    pages = pd.DataFrame(
        {
            "id": [str(i) for i in range(len(TEXTS))],
            "language": "en",
            "text": TEXTS,
            "num_bytes": [len(text.encode()) for text in TEXTS],
        }
    )
    settings = SimpleNamespace(languages=("en",), ngram_training_bytes_per_language=10**6)
    for bos, expected in (("<s>", 1), (None, 2)):
        tokenizer = copy.deepcopy(ours.tokenizer)
        tokenizer.bos_token = bos
        trigram, _, _ = fit_trigram(pages, tokenizer, settings, seed=0)
        assert trigram.bos_id == expected


def test_the_harness_finds_every_task_file():
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    languages = ("en", "zh", "ja", "ko", "code")
    assert {
        f"moxin_{kind}_{language}" for kind in ("bits_per_byte", "cloze") for language in languages
    } <= set(manager.all_tasks)
