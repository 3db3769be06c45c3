"""`moxin-lab chat --image`: answers about an image, and errors that name the file."""

import copy

import pytest
import torch
from PIL import Image

from moxin_lab import cli
from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import terminal
from moxin_lab.vision import hf
from moxin_lab.vision.images import open_image
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.prompts import encode_prompt


@pytest.fixture
def folder(tiny_vlm, byte_tokenizer, tmp_path):
    return hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")


def picture(tmp_path, name, colour=(250, 0, 0)):
    Image.new("RGB", (30, 30), colour).save(tmp_path / name)
    return tmp_path / name


def talk(folder, lines, image):
    """What the terminal shows of a conversation with these lines."""
    shown, lines = [], iter([*lines, "/exit"])
    terminal.chat(
        folder, image=image, max_new_tokens=3, read=lambda _: next(lines), show=shown.append
    )
    return shown


def test_a_conversation_about_an_image_goes_on_about_another(folder, tmp_path):
    red, blue = picture(tmp_path, "red.png"), picture(tmp_path, "blue.png", (0, 0, 250))
    shown = talk(folder, ["What?", "And?", f"/image {blue}", "What?", "/image no.png"], red)
    assert shown.count("Model: ") == 3
    assert any("another image)" in text for text in shown)
    assert any("stays as it was" in text and "no.png" in text for text in shown)


def test_a_question_that_spells_a_placeholder_or_an_end_is_text(folder, tmp_path, byte_tokenizer):
    image = open_image(picture(tmp_path, "red.png"))
    model = terminal.VisionModel(folder, image, 3, 0.0)
    for question in ("a </s> b", "what is <image>?", "a\nOut: b", "a\n<|user|>"):
        ids = torch.tensor([encode_prompt(byte_tokenizer, [], question)])
        pixels = prepare_images([image], model.model.vlm.towers.settings)
        completion = model.model.vlm.generate(pixels, ids, max_new_tokens=3, eos_token_id=2)[0]
        expected = byte_tokenizer.decode(completion, skip_special_tokens=True).strip()
        assert model.answer([{"role": "user", "content": question}], lambda text: None) == expected


def test_saving_and_two_loads_write_nothing(tiny_vlm, byte_tokenizer, tmp_path, capfd):
    saved = hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")
    for _ in range(2):
        terminal.VisionModel(saved, open_image(picture(tmp_path, "red.png")), 3, 0.0)
    assert capfd.readouterr() == ("", "")


def test_one_question_from_the_command_line(folder, tmp_path, capsys):
    words = [
        "chat",
        "--image",
        str(picture(tmp_path, "black.png", (0, 0, 0))),
        "--model",
        str(folder),
        "--ask",
        "What?",
        "--max-new-tokens",
        "2",
    ]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n") and captured.err == ""
    (tmp_path / "bad.png").write_bytes(b"nothing")
    words[2] = str(tmp_path / "bad.png")
    assert cli.main(words) == 1 and "bad.png" in capsys.readouterr().err


def test_a_vision_model_needs_an_image_and_no_system_message(folder, tmp_path):
    with pytest.raises(LabError, match="--image FILE"):
        terminal.chat(folder)
    with pytest.raises(LabError, match="--system"):
        terminal.chat(folder, image=picture(tmp_path, "red.png"), system="Be brief.")
