"""The lmms-eval adapter, against its documented interface; lmms-eval is not installed, so its two modules are stood in for."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from moxin_lab.vision import hf, lmms
from moxin_lab.vision.images import prepare_images
from moxin_lab.vision.prompts import PromptError, encode_prompt, tokens
from tests.vision.conftest import TINY_TOWERS

RED = Image.new("RGB", (30, 40), (200, 10, 10))


@pytest.fixture
def adapter(tiny_vlm, byte_tokenizer, tmp_path, monkeypatch):
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"].lmms = type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})
    modules["lmms_eval.models.registry_v2"].ModelManifest = SimpleNamespace
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(vars(lmms), "MoxinVL", raising=False)
    manifest = lmms.model_manifest()
    module_name, _, class_name = manifest.chat_class_path.rpartition(".")
    found = getattr(sys.modules[module_name], class_name)
    assert issubclass(found, modules["lmms_eval.api.model"].lmms) and found.is_simple is False
    one = found(pretrained=str(hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")))
    one.task_dict = {"task": {"test": [{"q": "What?", "image": RED}]}}
    yield one
    vars(lmms).pop("MoxinVL", None)


def _messages(document):
    parts = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["q"]}]
    return [{"role": "user", "content": parts}]


def test_generate_until_is_the_models_answer_up_to_the_stop(adapter, tiny_vlm, byte_tokenizer):
    request = SimpleNamespace(args=(_messages, {"max_new_tokens": 8}, 0, "task", "test"))
    (answer,) = adapter.generate_until([request])
    ids = torch.tensor([encode_prompt(byte_tokenizer, [], "What?")])
    made = tiny_vlm.generate(prepare_images([RED], TINY_TOWERS), ids, max_new_tokens=8, eos_token_id=2)[0]
    whole = byte_tokenizer.decode(made, skip_special_tokens=True)
    assert answer == whole.strip()
    stop = whole[3]
    cut = SimpleNamespace(args=(_messages, {"max_new_tokens": 8, "until": [stop]}, 0, "task", "test"))
    assert adapter.generate_until([cut]) == [whole.split(stop)[0].strip()]


def test_loglikelihood_is_that_of_the_target_and_says_whether_it_is_greedy(adapter, tiny_vlm, byte_tokenizer):
    def score(target):
        args = ("What?", lambda _: target, lambda document: [document["image"]], 0, "task", "test")
        return adapter.loglikelihood([SimpleNamespace(args=args)])[0]

    prompt = encode_prompt(byte_tokenizer, [], "What?")
    wanted = tiny_vlm.answer_log_likelihoods(
        [prompt], [[tokens(byte_tokenizer, "yes")]], pixel_values=prepare_images([RED], TINY_TOWERS)
    )
    value, greedy = score("yes")
    assert value == pytest.approx(wanted[0][0], abs=1e-3) and greedy is False
    with pytest.raises(PromptError, match="empty target"):
        score("")


def test_media_that_it_cannot_see_are_refused(adapter):
    request = SimpleNamespace(
        args=(lambda _: [{"role": "user", "content": [{"type": "video", "url": "a"}]}], {}, 0, "task", "test")
    )
    with pytest.raises(PromptError, match="video"):
        adapter.generate_until([request])
    with pytest.raises(ValueError, match="unknown model_args"):
        type(adapter)(pretrained="x", speed=3)
