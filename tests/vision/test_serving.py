"""The server with the vision-language model: stage 07's answers, and images that are none."""

import base64
import copy
import io
import zlib
from types import SimpleNamespace

import httpx
import pytest
import torch
from PIL import Image

from moxin_lab.serving.client import data_uri
from moxin_lab.serving.picture_questions import answer_items
from moxin_lab.serving.server import serve_in_background
from moxin_lab.vision import answering, hf
from moxin_lab.vision.pixels import prepare_images
from moxin_lab.vision.tasks import Item
from tests.vision.conftest import COLOURS, TINY_TOWERS, colour_squares

SETTINGS = SimpleNamespace(
    answer_batch=4, max_new_tokens=8, finetune=SimpleNamespace(precision="32-true")
)


@pytest.fixture
def server(tiny_vlm, byte_tokenizer, tmp_path):
    folder = hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")
    with serve_in_background(folder, max_rows=3) as running:
        yield running


def make_items():
    pictures = colour_squares(8)[..., :3]
    closed = ("red", "green", "blue", "yes, black")
    return [
        Item(str(place), "t", "k", f"What is {place}?", "red", closed if place % 2 else (), picture)
        for place, picture in enumerate(pictures)
    ]


def test_answers_over_http_are_those_of_stage_07(server, tiny_vlm, byte_tokenizer):
    items = make_items()
    with torch.no_grad():
        pixels = prepare_images([item.picture for item in items], TINY_TOWERS)
        features = tiny_vlm.image_features(pixels)
    seen = answering.answer(tiny_vlm, byte_tokenizer, items, features, SETTINGS)
    blind = answering.answer(tiny_vlm, byte_tokenizer, items, None, SETTINGS)
    assert answer_items(server.url, "vlm", items, max_new_tokens=8) == seen
    assert answer_items(server.url, "vlm", items, max_new_tokens=8, with_picture=False) == blind
    assert seen != blind


def chat(server, url, **more):
    part = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": "What?"}
    body = {
        "model": "vlm",
        "messages": [{"role": "user", "content": [part, text]}],
        "max_tokens": 3,
        **more,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def png(width, height):
    """A PNG of zeros whose header says its size; deflate makes a thousandth of it."""

    def part(name, content):
        crc = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + crc

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows = zlib.compress(b"\0" * min(height * (width + 1), 10**7), 9)
    head = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size + b"\x08\0\0\0\0")
    return head + part(b"IDAT", rows) + part(b"IEND", b"")


def encoded(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


GOOD = data_uri(Image.new("RGB", (9, 9)))
SECRET = "/etc/hostname"


@pytest.mark.parametrize(
    "url",
    [
        encoded(png(60_000, 60_000)),
        encoded(png(1, 2**31 - 1)),
        encoded(b"GIF89a"),
        encoded(b"%PDF-1.4 no image"),
        encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        encoded(b""),
        encoded(base64.b64decode(GOOD.split(",")[1])[:45]),
        "data:image/png;base64,%%%",
        "data:",
        "",
        "https://example.com/a.png",
        f"file://{SECRET}",
        SECRET,
        "../../../etc/passwd",
    ],
    ids=range(14),
)
def test_an_image_that_is_none_is_refused_and_nothing_is_fetched(server, url):
    response = chat(server, url)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "messages", error
    assert chat(server, GOOD).status_code == 200


def test_formats_are_told_by_content_and_two_images_are_refused(server):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), COLOURS["red"]).save(file, "JPEG")
    assert chat(server, encoded(file.getvalue(), "text/plain")).status_code == 200
    part = {"type": "image_url", "image_url": {"url": GOOD}}
    response = chat(server, GOOD, messages=[{"role": "user", "content": [part, part]}])
    assert response.status_code == 400 and "2 images" in response.json()["error"]["message"]


def test_usage_counts_patches_and_a_stream_gives_the_same_answer(server, tiny_vlm):
    whole = chat(server, GOOD, temperature=0).json()
    blind = "What?"
    text_only = chat(server, GOOD, messages=[{"role": "user", "content": blind}]).json()
    patches = whole["usage"]["prompt_tokens"] - text_only["usage"]["prompt_tokens"]
    assert patches == tiny_vlm.towers.num_patches
    streamed = chat(server, GOOD, temperature=0, stream=True).text
    assert streamed.endswith("data: [DONE]\n\n")
