"""`moxin-lab chat`: answers about an image, and errors that name the file."""

import copy

import pytest
from PIL import Image

from moxin_lab import cli
from moxin_lab.vision import hf, terminal


@pytest.fixture
def folder(tiny_vlm, byte_tokenizer, tmp_path):
    return hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")


def test_a_conversation_continues_until_an_empty_line(folder, tmp_path):
    Image.new("RGB", (30, 30), (250, 0, 0)).save(tmp_path / "red.png")
    questions, answers = iter(["What?", "And?", ""]), []
    assert (
        terminal.chat(
            folder,
            tmp_path / "red.png",
            max_new_tokens=3,
            read=lambda _: next(questions),
            write=answers.append,
        )
        == 0
    )
    assert len(answers) == 2 and all(line.startswith("Out: ") for line in answers)


def test_one_question_from_the_command_line(folder, tmp_path, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    words = [
        "chat",
        "--image",
        str(tmp_path / "black.png"),
        "--model",
        str(folder),
        "--ask",
        "What?",
        "--max-new-tokens",
        "2",
    ]
    assert cli.main(words) == 0 and capsys.readouterr().out.startswith("Out:")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    words[2] = str(tmp_path / "bad.png")
    assert cli.main(words) == 1 and "bad.png" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="--only 07"):
        terminal.find_model(tmp_path, "tiny")
