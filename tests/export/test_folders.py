"""`moxin-lab export`: folders that need nothing of ours, and refusals before work."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moxin_lab import cli
from moxin_lab.export import folders, scores
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(
    not HAS_TORCHAO,
    reason="needs torchao (extra `torchao`; not in dev, for it warns wherever transformers starts)",
)
# Loads a folder where importing our package is an error.
ALONE = """
import json, sys
sys.modules["moxin_lab"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The reader sees 文档窗口", return_tensors="pt").input_ids
with torch.no_grad():
    print(json.dumps([ids.tolist(), model(ids).logits[0, -1].tolist()]))
"""


def refused(folder: Path, target: str, out: Path, words: str, **options) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(LabError, match=words):
        folders.export(folder, target, out, **options)
    assert sorted(out.parent.rglob("*")) == before


@torch.no_grad()
def test_a_hugging_face_folder_loads_where_our_package_is_not(
    folder: Path, model, tokenizer, tmp_path: Path
) -> None:
    report = folders.export(folder, "hf", tmp_path / "out")
    assert report["tensors_compared"] == len(model.state_dict())
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report
    words = [sys.executable, "-c", ALONE, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ids, logits = json.loads(done.stdout.splitlines()[-1])
    assert ids == [[1, *tokenizer.encode("The reader sees 文档窗口")]]
    expected = model(torch.tensor(ids))[0, -1]
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-4)


def test_a_gguf_file_becomes_a_folder_with_the_same_weights(
    folder: Path, model, tmp_path: Path
) -> None:
    folders.export(folder, "gguf", tmp_path / "file")
    folders.export(tmp_path / "file" / "model.gguf", "hf", tmp_path / "out")
    again = convert.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    opened = folders.read(tmp_path / "out")
    for text in ("Reading 12 files", "문서 창의 메뉴", "\tx = 2\n\n"):
        ids = folders.read(folder).tokenizer(text, add_special_tokens=False).input_ids
        assert opened.tokenizer(text, add_special_tokens=False).input_ids == ids


def test_what_is_wrong_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(folder, "onnx", out, r"no target 'onnx': --to is one of hf, gguf, torchao-int8")
    refused(folder, "hf", out, "no dtype 'q4_0' for hf: --dtype is one of float32", dtype="q4_0")
    refused(folder, "gguf", out, "--group-size is for torchao-int4", group_size=32)
    refused(tmp_path / "none", "hf", out, "none is missing: --model is a model's folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "hf", out, r"no language model's folder: .*config.json is missing")
    shutil.copyfile(folder / "config.json", empty / "config.json")
    refused(empty, "gguf", out, r"has no tokenizer.json .* copy the tokenizer's files into it")
    shutil.copyfile(folder / "tokenizer.json", empty / "tokenizer.json")
    refused(empty, "hf", out, r"empty lacks model.safetensors")
    refused(folder / "config.json", "hf", out, "is a file: --model is the folder it lies in")
    out.mkdir()
    refused(folder, "hf", out, "out is there already: name a new folder, or remove it")


@pytest.mark.parametrize(("target", "package"), [("gguf", "gguf"), ("torchao-int8", "torchao")])
def test_a_missing_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    refused(folder, target, tmp_path / "out", rf"pip install 'moxin-lab\[{package}\]'")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, model, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    described = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    described["added_tokens"].append(
        described["added_tokens"][0] | {"id": model.config.vocab_size, "content": "<new>"}
    )
    (other / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    refused(other, "gguf", tmp_path / "out", "do not belong together")


def test_the_command_tells_sizes_and_bits_per_byte_before_and_after(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = tmp_path / "heldout.txt"
    text.write_text("The window.\n\nA file of help.\n\nThe table, 12.", encoding="utf-8")
    words = ["export", "--to", "gguf", "--model", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--dtype", "q4_0", "--text", str(text)]) == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["documents"] == 3 and report["bytes_after"] < report["bytes_before"] / 2
    before, after = (report[f"bits_per_byte_{when}"] for when in ("before", "after"))
    assert before["low"] < before["value"] < before["high"] and after["value"] != before["value"]
    difference = report["bits_per_byte_difference"]["value"]
    assert difference == pytest.approx(after["value"] - before["value"])
    assert f"bits per byte, after: {after['value']:.4f}" in told and "the window" in told
    assert cli.main(words) == 1
    assert "out is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--to", "onnx", "--model", "a", "--out", "b"])
    assert ended.value.code == 2 and "torchao-int4" in capsys.readouterr().err


def test_text_that_cannot_be_read_is_refused_and_the_rest_is_cut(tmp_path: Path) -> None:
    (tmp_path / "cut.txt").write_text("가나다라\n\nab", encoding="utf-8")
    assert scores.read_texts(tmp_path / "cut.txt", 7) == ["가나"]
    (tmp_path / "empty.txt").write_text("\n\n\n")
    for name, words in (("none.txt", "cannot be read"), ("empty.txt", "holds no text")):
        with pytest.raises(LabError, match=words):
            scores.read_texts(tmp_path / name, 100)


@needs_torchao
@pytest.mark.parametrize("target", ["torchao-int8", "torchao-int4"])
@torch.no_grad()
def test_quantised_folders_are_smaller_and_compute_nearly_the_same(
    folder: Path, model, tmp_path: Path, target: str
) -> None:
    texts = ["The reader sees a file.", "A window of help."]
    report = folders.export(folder, target, tmp_path / "out", texts=texts)
    assert report["matrices_quantised"] == 7 * 2
    assert report["bytes_packed"] <= report["bytes_after"] < report["bytes_before"]
    again = scores.read_back(tmp_path / "out", target)
    found = {name: type(weight.data).__name__ for name, weight in again.named_parameters()}
    kind = "Int8Tensor" if target == "torchao-int8" else "IntxUnpackedToInt8Tensor"
    assert sum(name == kind for name in found.values()) == 14
    for name, tensor in model.state_dict().items():
        weight = again.get_parameter(name)
        if found[name] != kind:
            assert torch.equal(weight, tensor), name
            continue
        # No further off than half a step, of the largest number that shares the scale.
        group, steps = (tensor.shape[1], 127) if target == "torchao-int8" else (32, 7.5)
        largest = tensor.abs().unflatten(1, (-1, group)).amax(2, keepdim=True)
        off = (weight.dequantize() - tensor).abs().unflatten(1, (-1, group))
        assert bool((off <= largest / steps * 0.51).all()), name


@needs_torchao
def test_groups_that_do_not_fill_the_rows_are_refused(folder: Path, tmp_path: Path) -> None:
    refused(
        folder, "torchao-int4", tmp_path / "out", "groups of 40 numbers do not fill", group_size=40
    )
