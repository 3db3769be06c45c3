"""`moxin_lab.vision.hf` and `processor`: Auto classes load a saved folder, the chat template places
the image, and both prompt modes agree.
"""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from moxin_lab.vision import hf
from moxin_lab.vision.images import prepare_images
from moxin_lab.vision.prompts import PromptError, encode_prompt

RED, BLUE = Image.new("RGB", (50, 20), (220, 20, 20)), Image.new("RGB", (20, 60), (20, 20, 220))
MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]}
]


@pytest.fixture
def saved(tiny_vlm, byte_tokenizer, tmp_path):
    folder = hf.save(tiny_vlm, copy.deepcopy(byte_tokenizer), tmp_path / "vlm")
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(
        folder
    )


def test_a_saved_and_loaded_model_gives_the_same_answer(saved, tiny_vlm, byte_tokenizer):
    model, processor = saved
    for name, expected in tiny_vlm.state_dict().items():
        assert torch.equal(expected, model.vlm.state_dict()[name]), name
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert text == "<s><image>In: What is this?\nOut: "
    inputs = processor(text=text, images=[RED], return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 4 + len(
        encode_prompt(byte_tokenizer, [], "What is this?")
    )
    completion = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    pixels = prepare_images([RED], tiny_vlm.towers.settings)
    ids = torch.tensor([encode_prompt(byte_tokenizer, [], "What is this?")])
    assert torch.equal(
        completion, tiny_vlm.generate(pixels, ids, max_new_tokens=6, eos_token_id=2)[0]
    )
    assert isinstance(processor.decode(completion, skip_special_tokens=True), str)


def test_placeholder_and_prefix_mode_agree_and_the_image_matters(saved):
    model, processor = saved
    placed = processor(text=processor.apply_chat_template(MESSAGES), images=[RED])
    prefix = processor(text=processor.prompt("What is this?"), images=[RED])
    assert prefix["input_ids"].shape[1] + 4 == placed["input_ids"].shape[1]
    with torch.no_grad():
        one, two = model(**placed).logits, model(**prefix).logits
        other = model(**processor(text=processor.prompt("What is this?"), images=[BLUE])).logits
    torch.testing.assert_close(one, two)
    assert (one - other).abs().max() > 1e-2


def test_a_batch_of_two_images_and_a_text_equals_each_alone(saved):
    model, processor = saved
    texts = ["<s><image>In: a\nOut: ", "<s>In: no image, longer\nOut: ", "<s><image>In: bb\nOut: "]
    together = model.generate(**processor(text=texts, images=[RED, BLUE]), max_new_tokens=5)[:, -5:]
    for row, images in enumerate(([RED], None, [BLUE])):
        alone = model.generate(**processor(text=texts[row], images=images), max_new_tokens=5)
        width = alone.shape[1] - processor(text=texts[row], images=images)["input_ids"].shape[1]
        assert torch.equal(together[row, :width], alone[0, -width:])


def test_a_conversation_is_tokenised_as_in_training(saved, byte_tokenizer):
    _, processor = saved
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": "a box"},
        {"role": "user", "content": "Its colour?"},
    ]
    ids = processor(text=processor.apply_chat_template(messages), images=[RED])["input_ids"][
        0
    ].tolist()
    expected = encode_prompt(byte_tokenizer, [("What is this?", "a box")], "Its colour?")
    assert [token for token in ids if token != processor.image_token_id] == expected


def test_too_many_images_and_misplaced_placeholders_are_refused(saved):
    model, processor = saved
    with pytest.raises(PromptError, match="2 images for 1 texts"):
        processor(text="<s><image>In: a\nOut: ", images=[RED, BLUE])
    with pytest.raises(PromptError, match="right at the beginning"):
        processor(text="<s>In: a <image>\nOut: ", images=[RED])
    inputs = processor(text="<s><image>In: a\nOut: ", images=[RED])
    with pytest.raises(ValueError, match="right after bos"):
        model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)})
    with pytest.raises(ValueError, match="labels are not read"):
        model(**inputs, labels=inputs["input_ids"])
