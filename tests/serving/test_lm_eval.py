"""lm-evaluation-harness over HTTP, by its own `local-completions`, gives the in-process scores."""

import json

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tokenizers import processors
from transformers import AutoTokenizer

from moxin_lab.evaluation.harness import run_tasks
from moxin_lab.evaluation.language_models import MoxinLM
from moxin_lab.model import convert
from moxin_lab.serving.server import serve_in_background
from tests.serving.examples import write_model

MAX_LENGTH = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its tokenizer begins texts with bos, as the lab's do."""
    folder = write_model(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=256)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return MoxinLM(convert.from_pretrained(folder), tokenizer, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def client(folder):
    """Makes lm-eval's own client of a server."""
    with serve_in_background(folder, max_rows=4) as server:

        def client(add_bos_token, max_length=MAX_LENGTH + 1):
            return LocalCompletionsAPI(
                model=server.model,
                base_url=f"{server.url}/v1/completions",
                tokenizer_backend="huggingface",
                tokenizer=str(folder),
                add_bos_token=add_bos_token,
                max_length=max_length,
                num_concurrent=4,
                batch_size=1,
            )

        yield client


@pytest.fixture(scope="module")
def theirs(client):
    return client(add_bos_token=True)


def instances(kind, arguments):
    return [
        Instance(kind, {}, args, place, metadata=("test", place, 1))
        for place, args in enumerate(arguments)
    ]


PAIRS = [
    (context, choice)
    for context in ("The window slides over the text. " * 2, "창은 본문", "x = 1\n")
    for choice in (" yes", "続き", " no, never")
]


def test_loglikelihoods_equal_those_in_process(ours, theirs):
    here = ours.loglikelihood(instances("loglikelihood", PAIRS))
    there = theirs.loglikelihood(instances("loglikelihood", PAIRS))
    assert [value for value, _ in there] == pytest.approx([value for value, _ in here], abs=1e-3)
    assert [greedy for _, greedy in there] == [greedy for _, greedy in here]
    assert len({round(value, 3) for value, _ in there}) == len(PAIRS)  # no constant score


def test_rolling_loglikelihoods_equal_those_in_process(ours, client):
    texts = [(context * 5,) for context, _ in PAIRS[::3]]
    here = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    # With add_bos_token lm-eval would put bos before a text twice, and score it.
    # It keeps one token free for an answer, and here one more for the first token's context.
    lm = client(add_bos_token=False, max_length=MAX_LENGTH + 2)
    there = lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    assert there == pytest.approx(here, abs=1e-2)


def test_generations_equal_those_in_process(ours, theirs):
    def asked():
        options = {"until": ["\n\n", "zzz"], "max_gen_toks": 20}
        pairs = [(context, dict(options)) for context, _ in PAIRS[::3]]
        return instances("generate_until", pairs)

    assert theirs.generate_until(asked()) == ours.generate_until(asked())


def test_a_task_gives_the_same_accuracies(ours, theirs, tmp_path):
    lines = [
        {"context": context, "choices": ["ab", "cd e", "三", "k"], "label": place % 4}
        for place, (context, _) in enumerate(PAIRS)
    ]
    path = tmp_path / "moxin_cloze_en.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    here, there = (
        run_tasks(lm, ["moxin_cloze_en"], tmp_path)["results"]["moxin_cloze_en"]
        for lm in (ours, theirs)
    )
    scores = [name for name in here if name.startswith("acc") and "stderr" not in name]
    assert scores and [there[name] for name in scores] == [here[name] for name in scores]
