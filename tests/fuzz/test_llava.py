"""LLaVA files changed at random: each gives examples that train, or a DataError with its file.

    pytest -m fuzz tests/fuzz/test_llava.py    # 2,000 files, a minute, seed printed

The changes: bytes of the JSON file or of an image cut, flipped, repeated; a value left out,
renamed, wrapped or odd.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moxin_lab.vision.data import IMAGE_MARK, DataError, Example, load_llava, to_llava
from moxin_lab.vision.images import open_image
from tests.fuzz.measured import Call, change_bytes, change_value, check, run_in_child

CALLS = 2_000
LEAST = {"accepted": 0.1, "DataError": 0.1}
NAMES = ("00453/a.jpg", "coco/train2017/b.png", "c.webp")


def records() -> list[dict]:
    def turns(*texts: str) -> list[dict]:
        roles = ("human", "gpt") * len(texts)
        return [{"from": role, "value": text} for role, text in zip(roles, texts, strict=False)]

    return [
        {"id": "1", "image": NAMES[0], "conversations": turns("What?\n<image>", "A bed.")},
        {
            "id": "2",
            "image": NAMES[1],
            "conversations": turns("<image>\nWhat?", "Red.", "?", "No."),
        },
        {"id": 3, "image": NAMES[2], "conversations": turns("<image>", "図")},
        {"id": "4", "model": "", "conversations": turns("<image> is a tag?", "No.")},
        {"id": "5", "conversations": [{"from": "gpt", "value": "earlier"}, *turns("Go", "Done")]},
    ]


def write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def change(folder: Path, rng: random.Random) -> tuple[str, bytes]:
    """(what was changed, content of the JSON file); an image may be changed in place."""
    content = json.dumps(records()).encode()
    kind = rng.choice(("value", "value", "bytes", "image", "none"))
    if kind == "value":
        how, changed = change_value(records(), rng)
        return how, json.dumps(changed).encode()
    if kind == "bytes":
        return change_bytes(content, rng, content)
    if kind == "image":
        path = folder / rng.choice(NAMES)
        how, changed = change_bytes(path.read_bytes(), rng)
        path.write_bytes(rng.choice((changed, changed, b"")))
        return f"{path.name}: {how}", content
    return "nothing", content


def campaign(count: int, seed: int, folder: Path) -> Iterator[Call]:
    rng, path = random.Random(seed), folder / "records.json"
    for _ in range(count):
        write_images(folder)
        how, content = change(folder, rng)
        path.write_bytes(content)

        def load(how: str = how, content: bytes = content) -> None:
            examples = load_llava(path, folder)
            # Nothing was dropped, and what was read trains: all is text, no answer is empty, each
            # image opens.
            assert len(examples) == len(json.loads(content))
            for example in examples:
                assert example.turns and all(answer.strip() for _, answer in example.turns)
                assert all(text.encode() or not text for turn in example.turns for text in turn)
                if example.image is not None:
                    assert open_image(folder / example.image).size
                    assert IMAGE_MARK not in example.turns[0][0]
            again = [to_llava(example) for example in examples]
            path.write_text(json.dumps(again), encoding="utf-8")
            read = load_llava(path, folder)
            assert [stripped(one) for one in read] == [stripped(one) for one in examples]

        yield Call(how, load, (DataError,), str(path))


def stripped(example: Example) -> tuple:
    """Spaces around a turn are no part of it."""
    return example.id, example.image, [(q.strip(), a.strip()) for q, a in example.turns]


def test_three_hundred_changed_files_give_examples_or_an_error_with_the_file(tmp_path):
    check(run_in_child(campaign, 300, tmp_path, seed=0), 300, LEAST)


@pytest.mark.fuzz
def test_two_thousand_changed_files_give_examples_or_an_error_with_the_file(tmp_path):
    check(run_in_child(campaign, CALLS, tmp_path), CALLS, LEAST)
