"""`moxin_lab.vision.lmms`: tested with stubs of the three classes of lmms-eval 0.7.3 that it uses,
and with lmms-eval's own command where it is installed.
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from moxin_lab.vision import hf, lmms
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.prompts import PromptError, encode_prompt, tokenize

RED = Image.new("RGB", (30, 40), (200, 10, 10))
INSTALL = "uv pip install lmms-eval==0.7.3 -c requirements.lock"


@dataclass
class GenerationResult:
    """As `lmms_eval.api.instance.GenerationResult`."""

    text: object
    token_counts: object = None


@dataclass(frozen=True)
class ModelManifest:
    """As `lmms_eval.models.registry_v2.ModelManifest`."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Model:
    """The part of `lmms_eval.api.model.lmms` that a model relies on."""

    is_simple = True

    def __init__(self):
        self.task_dict = {}


@pytest.fixture
def folder(tiny_vlm, byte_tokenizer, tmp_path):
    return str(hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm"))


@pytest.fixture
def stub_lmms_eval(monkeypatch):
    names = ("", ".api", ".api.instance", ".api.model", ".models", ".models.registry_v2")
    modules = {f"lmms_eval{name}": ModuleType(f"lmms_eval{name}") for name in names}
    modules["lmms_eval.api.instance"].GenerationResult = GenerationResult
    modules["lmms_eval.api.model"].lmms = Model
    modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in lmms.IS_SIMPLE:
        vars(lmms).pop(name, None)
    yield
    for name in lmms.IS_SIMPLE:
        vars(lmms).pop(name, None)


@pytest.fixture
def models(stub_lmms_eval, folder):
    """The chat model and the simple model, loaded as lmms-eval's registry loads them."""
    manifest = lmms.model_manifest()
    assert manifest.model_id == "moxin_vl" and not manifest.aliases
    adapters = {}
    for kind, path in (("chat", manifest.chat_class_path), ("simple", manifest.simple_class_path)):
        module, _, name = path.rpartition(".")
        adapter = getattr(sys.modules[module], name)
        assert issubclass(adapter, Model) and adapter.is_simple == (kind == "simple")
        adapters[kind] = adapter(pretrained=folder, device="cpu", batch_size="1")
        adapters[kind].task_dict = {"task": {"test": [{"q": "What?", "image": RED}]}}
    return SimpleNamespace(**adapters)


def _messages(document):
    parts = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["q"]}]
    return [{"role": "user", "content": parts}]


def _visual(document):
    return [document["image"]]


def chat_request(options, messages=_messages):
    return SimpleNamespace(args=("What?", messages, options, 0, "task", "test"))


def simple_request(options, context="What?", visual=_visual):
    return SimpleNamespace(args=(context, options, visual, 0, "task", "test"))


def written(tiny_vlm, byte_tokenizer, question, image, max_new_tokens=8):
    ids = torch.tensor([encode_prompt(byte_tokenizer, [], question)])
    pixels = prepare_images([image], tiny_vlm.towers.settings) if image else None
    completion = tiny_vlm.generate(pixels, ids, max_new_tokens=max_new_tokens, eos_token_id=2)[0]
    return byte_tokenizer.decode(completion, skip_special_tokens=True)


def test_generate_until_is_the_models_answer_up_to_the_stop_in_either_form_of_request(
    models, tiny_vlm, byte_tokenizer
):
    whole = written(tiny_vlm, byte_tokenizer, "What?", RED)
    stop = whole[3]
    for options, answer in (
        ({"max_new_tokens": 8, "until": ["\n\n"]}, whole.split("\n\n")[0].strip()),
        (
            {"max_new_tokens": 8, "until": [stop], "temperature": 0.0, "top_p": 0},
            whole.split(stop)[0].strip(),
        ),
    ):
        assert models.chat.generate_until([chat_request(options)]) == [answer]
        assert models.simple.generate_until([simple_request(options)]) == [answer]
        marked = simple_request(
            options, context="<image>What?"
        )  # some tasks contain the placeholder
        assert models.simple.generate_until([marked]) == [answer]


@pytest.mark.parametrize("text", ["a</s>b", "a\nOut: b", "is <image> a word?", "<s>", "<unk>"])
def test_a_question_that_spells_markup_is_text(models, tiny_vlm, byte_tokenizer, text):
    expected = written(tiny_vlm, byte_tokenizer, text, RED).strip()
    options = {"max_new_tokens": 8}
    assert models.simple.generate_until([simple_request(options, context=text)]) == [expected]
    parts = [{"type": "image", "url": RED}, {"type": "text", "text": text}]
    chat = chat_request(options, lambda _: [{"role": "user", "content": parts}])
    assert models.chat.generate_until([chat]) == [expected]
    prompt = encode_prompt(byte_tokenizer, [], text)
    likely = tiny_vlm.answer_log_likelihoods(
        [prompt],
        [[tokenize(byte_tokenizer, "yes")]],
        pixel_values=prepare_images([RED], tiny_vlm.towers.settings),
    )[0][0]
    args = (text, "yes", _visual, 0, "task", "test")
    loss, _ = models.simple.loglikelihood([SimpleNamespace(args=args)])[0].text
    assert loss == pytest.approx(-float(likely), abs=1e-3)


def test_a_placeholder_is_text_where_there_is_no_image(models, tiny_vlm, byte_tokenizer):
    request = simple_request({"max_new_tokens": 8}, "<image>What?", lambda document: None)
    expected = written(tiny_vlm, byte_tokenizer, "<image>What?", None).strip()
    assert models.simple.generate_until([request]) == [expected]


def test_messages_and_options_that_are_not_followed_are_refused_by_name(models):
    system = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}]
    with pytest.raises(PromptError, match="no system message"):
        models.chat.generate_until([chat_request({}, lambda _: system)])
    for options, named in (
        ({"repetition_penalty": 1.2, "num_beams": 3}, "num_beams=3, repetition_penalty=1.2"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad'"),
    ):
        with pytest.raises(ValueError, match=f"does not follow {named}"):
            models.simple.generate_until([simple_request(options)])
    neutral = {"num_beams": 1, "image_aspect_ratio": "original", "max_new_tokens": 2}
    assert models.simple.generate_until([simple_request(neutral)])


def test_a_question_without_an_image_is_answered(models, tiny_vlm, byte_tokenizer):
    whole = written(tiny_vlm, byte_tokenizer, "What?", None)
    request = simple_request({"max_new_tokens": 8}, visual=lambda document: None)
    assert models.simple.generate_until([request]) == [whole.strip()]


def test_loglikelihood_is_the_loss_of_the_target_and_says_whether_it_is_greedy(
    models, tiny_vlm, byte_tokenizer
):
    def score(target):
        args = ("<image>What?", target, _visual, 0, "task", "test")
        return models.simple.loglikelihood([SimpleNamespace(args=args)])[0].text

    prompt = encode_prompt(byte_tokenizer, [], "What?")
    targets = ["yes", "no"]
    log_likelihoods = tiny_vlm.answer_log_likelihoods(
        [prompt],
        [[tokenize(byte_tokenizer, target) for target in targets]],
        pixel_values=prepare_images([RED], tiny_vlm.towers.settings),
    )
    for target, expected in zip(targets, log_likelihoods[0], strict=True):
        loss, greedy = score(f" {target}")
        assert loss == pytest.approx(-float(expected), abs=1e-3) and greedy is False
        assert score(lambda _, target=target: target) == (loss, greedy)
    with pytest.raises(PromptError, match="empty target"):
        score("")


def test_media_that_it_cannot_see_are_refused(models):
    video = [{"role": "user", "content": [{"type": "video", "url": "a"}]}]
    with pytest.raises(PromptError, match="video"):
        models.chat.generate_until([chat_request({}, lambda _: video)])
    with pytest.raises(PromptError, match="one image per text"):
        models.simple.generate_until([simple_request({}, visual=lambda document: [RED, RED])])
    args = ("What?", "yes", lambda document: [RED, RED], 0, "task", "test")
    with pytest.raises(PromptError, match="2 images"):
        models.simple.loglikelihood([SimpleNamespace(args=args)])


def test_arguments_that_it_does_not_know_are_refused(models):
    with pytest.raises(ValueError, match="unknown model_args speed"):
        type(models.chat)(pretrained="x", speed=3)
    with pytest.raises(ValueError, match="one question at a time"):
        type(models.chat)(pretrained="x", batch_size="auto")


COLOURS = {
    "red": (200, 10, 10),
    "green": (10, 200, 10),
    "blue": (10, 10, 200),
    "white": (250, 250, 250),
}
TASK = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: image
doc_to_text: question
doc_to_target: {target}
"""
WORDS = """
task: words
output_type: generate_until
generation_kwargs: {max_new_tokens: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICES = """
task: choices
output_type: multiple_choice
doc_to_choice: [red, green, blue, white]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tiny_vlm, byte_tokenizer, tmp_path):
    """A folder of two tasks whose reference answers are those of the model itself, so it scores 1
    if the adapter asks it correctly.
    """
    question, rows = "What colour is this?", []
    for rgb in COLOURS.values():
        image = Image.new("RGB", (30, 40), rgb)
        likely = tiny_vlm.answer_log_likelihoods(
            [encode_prompt(byte_tokenizer, [], question)],
            [[tokenize(byte_tokenizer, name) for name in COLOURS]],
            pixel_values=prepare_images([image], tiny_vlm.towers.settings),
        )[0]
        words = written(tiny_vlm, byte_tokenizer, question, image).split("\n\n")[0].strip()
        choice = list(COLOURS)[int(torch.as_tensor(likely).argmax())]
        rows.append({"question": question, "image": image, "words": words, "choice": choice})
    text = Value("string")
    kinds = Features({"question": text, "image": ImageFeature(), "words": text, "choice": text})
    Dataset.from_list(rows, features=kinds).to_parquet(tmp_path / "colours.parquet")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, target, task in (("words", "words", WORDS), ("choices", "choice", CHOICES)):
        common = TASK.format(data=tmp_path / "colours.parquet", target=target)
        (folder / f"{name}.yaml").write_text(task + common)
    return folder


@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason=f"lmms-eval is not among the dependencies; runs after `{INSTALL}`",
)
@pytest.mark.parametrize(
    ("options", "names", "metrics"),
    [
        ((), "words", {"words": "exact_match,none"}),
        (
            ("--force_simple",),
            "words,choices",
            {"words": "exact_match,none", "choices": "acc,none"},
        ),
    ],
)
def test_lmms_evals_own_command_gets_the_models_own_answers(
    folder, tasks, tmp_path, options, names, metrics
):
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "moxin_vl",
        "--model_args",
        f"pretrained={folder}",
        "--device",
        "cpu",
        "--tasks",
        names,
        "--include_path",
        str(tasks),
        "--output_path",
        str(tmp_path / "results"),
        *options,
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    files = list((tmp_path / "results").rglob("*_results.json"))
    assert len(files) == 1, done.stderr
    results = json.loads(files[0].read_text())["results"]
    assert {name: results[name][metric] for name, metric in metrics.items()} == dict.fromkeys(
        metrics, 1.0
    )
