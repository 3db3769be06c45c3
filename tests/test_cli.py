"""`moxin-lab`: which tree a command works on, and how it ends when nobody reads its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moxin_lab import cli


@pytest.fixture
def other_tree(tmp_path):
    """A folder laid out as a repository, with a package of its own."""
    for folder in ("notebooks", "moxin_lab", "data_cards"):
        (tmp_path / folder).mkdir()
    (tmp_path / "moxin_lab/__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "status", "mof"])
def test_a_reader_that_goes_away_ends_the_command_quietly(repository, words, unbuffered):
    """As `moxin-lab status | head -1`, with a reader that has closed before the first line."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "moxin_lab.cli", *words.split()]
    done = subprocess.run(
        command,
        cwd=repository,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write_end)
    assert done.stderr == ""
    # argparse itself ignores that it cannot print its help
    assert done.returncode == 141 or (words, done.returncode) == ("--help", 0)


def test_a_broken_pipe_that_is_not_the_outputs_is_not_hidden(monkeypatch):
    def fails(options):
        raise BrokenPipeError("a worker's socket")

    monkeypatch.setattr(cli, "_mof", fails)
    with pytest.raises(BrokenPipeError, match="a worker's socket"):
        cli.main(["mof"])


def test_a_command_called_outside_a_repository_names_the_tree_it_uses(
    repository, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["mof"]) == 0
    output = capsys.readouterr()
    installed = Path(cli.__file__).resolve().parents[1]
    assert f"{tmp_path} is not inside a repository; using {installed}" in output.err
    assert output.out.startswith(f"{installed / 'MOF.yml'}, as it lists")
    assert cli.main(["verify"]) == 1  # the one command that must not take another tree
    output = capsys.readouterr()
    assert f"{tmp_path} has neither manifest.json nor" in output.err and not output.out


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_tree_with_another_package_is_not_run_with_this_one(other_tree, command, capsys):
    assert cli.main(["--root", str(other_tree), command]) == 1
    error = capsys.readouterr().err
    assert f"{other_tree} has its own moxin_lab, but this command runs" in error
    assert f"cd {other_tree} && {sys.executable} -m moxin_lab.cli" in error


def test_chat_with_a_text_model_says_what_it_is_and_what_to_give_instead(text_model, capsys):
    folder, image = text_model
    words = ["chat", "--image", str(image), "--model", str(folder), "--ask", "What?"]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert f"{folder} is a text model (mistral) and sees no image" in error and "--model" in error
    assert len(error) < 400
    (folder / "config.json").write_text("[" * 100_000)
    assert cli.main(words) == 1
    assert "config.json cannot be read as JSON" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert cli.main(words) == 1
    assert "has no config.json" in capsys.readouterr().err


@pytest.fixture
def text_model(tmp_path):
    """A folder with the configuration of a text model, and an image."""
    from PIL import Image

    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    return folder, tmp_path / "image.png"


def test_a_name_that_the_output_cannot_spell_is_written_with_escapes(tmp_path, repository):
    text = (repository / "MOF.yml").read_text(encoding="utf-8")
    file = tmp_path / "MOF.yml"
    file.write_text(text.replace("moxin-lab-small", "größe \u732b"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "moxin_lab.cli", "mof", str(file)],
        cwd=repository,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"gr\xf6\xdfe \u732b" in done.stdout
