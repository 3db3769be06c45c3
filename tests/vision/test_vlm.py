"""`moxin_lab.vision.vlm` and `prompts`: where the patches are, which tokens carry loss, and that a
row gets the same result in any batch and with any cache.
"""

import pytest
import torch

from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision.data import Example
from moxin_lab.vision.prompts import (
    PromptError,
    encode_example,
    encode_prompt,
    tokenize,
)
from moxin_lab.vision.vlm import pad_examples


def test_patches_come_right_after_bos_and_carry_no_loss(tiny_vlm, pixels):
    ids = torch.tensor([[1, 50, 51, 52, 2]])
    labels = torch.tensor(
        [[1, IGNORE_INDEX, IGNORE_INDEX, 52, 2]]
    )  # even a label on bos is dropped
    features = tiny_vlm.image_features({name: values[:1] for name, values in pixels.items()})
    joined = tiny_vlm.join(ids, features, labels=labels)
    text, patches = tiny_vlm.decoder.model.embed_tokens(ids), tiny_vlm.projector(features)
    expected = torch.cat((text[:, :1], patches, text[:, 1:]), dim=1)
    torch.testing.assert_close(joined.embeddings, expected, rtol=0, atol=0)
    assert joined.labels.tolist() == [[IGNORE_INDEX] * 7 + [52, 2]]
    output = tiny_vlm(None, ids, labels, features=features)
    logits = tiny_vlm(None, ids, features=features).logits
    expected = torch.nn.functional.cross_entropy(
        logits[0, 6:8], torch.tensor([52, 2]), reduction="none"
    )
    torch.testing.assert_close(output.nats, expected)
    torch.testing.assert_close(output.loss, expected.mean())


def test_a_standardised_projector_removes_the_mean_image_and_has_the_size_of_tokens(
    tiny_vlm,
):
    direction = torch.randn(56, generator=torch.Generator().manual_seed(0))
    features = 5 * direction + torch.randn(
        40, 4, 56, generator=torch.Generator().manual_seed(1)
    ) * (direction.abs() + 0.1)
    plain = tiny_vlm.projector(features).flatten(0, 1)
    assert plain.mean(dim=0).square().mean() > 5 * plain.var(dim=0).mean()
    tiny_vlm.projector.standardise(features, rms=0.3)
    outputs = tiny_vlm.projector(features).flatten(0, 1)
    torch.testing.assert_close(outputs.mean(dim=0), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.std(dim=0), torch.full((32,), 0.3), rtol=1e-3, atol=0)


def test_text_alone_is_the_decoder_itself(tiny_vlm):
    ids = torch.randint(
        4, 260, (2, 40), generator=torch.Generator().manual_seed(0)
    )  # longer than the window
    torch.testing.assert_close(tiny_vlm(None, ids).logits, tiny_vlm.decoder(ids))
    embeddings = tiny_vlm.decoder.model.embed_tokens(ids)
    torch.testing.assert_close(
        tiny_vlm.decoder.hidden_states_from_embeddings(embeddings),
        tiny_vlm.decoder.hidden_states(ids),
    )


def test_a_mixed_batch_equals_each_row_alone(tiny_vlm, pixels):
    features = tiny_vlm.image_features(pixels)
    rows = [
        ([1, 9, 8, 7, 2], True),
        ([1, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 2], False),
        ([1, 40, 2], True),
    ]
    batch = pad_examples([(ids, [IGNORE_INDEX, *ids[1:]]) for ids, _ in rows])
    has_image = torch.tensor([image for _, image in rows])
    together = tiny_vlm(
        None,
        batch["input_ids"],
        batch["labels"],
        features=features[:2],
        attention_mask=batch["attention_mask"],
        has_image=has_image,
    )
    num_images = 0
    for row, (ids, image) in enumerate(rows):
        one = tiny_vlm(
            None,
            torch.tensor([ids]),
            torch.tensor([[IGNORE_INDEX, *ids[1:]]]),
            features=features[num_images : num_images + 1] if image else None,
        )
        num_images += image
        torch.testing.assert_close(
            together.nats[together.rows == row], one.nats, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_generation_equals_uncached_and_each_row_alone(tiny_vlm, pixels, side):
    features = tiny_vlm.image_features(pixels)
    prompts, images = [[1, 70, 71], [1, *range(80, 104)], [1, 60, 61, 62, 63]], [True, False, True]
    width = max(map(len, prompts))
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        index = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids[row, index], mask[row, index] = torch.tensor(prompt), 1
    options = {
        "features": features[:2],
        "attention_mask": mask,
        "has_image": torch.tensor(images),
        "max_new_tokens": 30,
    }
    cached = tiny_vlm.generate(None, ids, **options)
    assert torch.equal(cached, tiny_vlm.generate(None, ids, use_cache=False, **options))
    num_images = 0
    for row, prompt in enumerate(prompts):
        shown = features[num_images : num_images + 1] if images[row] else None
        num_images += images[row]
        alone = tiny_vlm.generate(None, torch.tensor([prompt]), features=shown, max_new_tokens=30)
        assert torch.equal(alone[0], cached[row])
    blind = tiny_vlm.generate(None, torch.tensor([prompts[0]]), max_new_tokens=30)
    assert not torch.equal(blind[0], cached[0])  # or the image would not matter to this test


def test_under_autocast_the_cache_has_half_precision_and_likelihoods_do_not(tiny_vlm, pixels):
    features, ids = tiny_vlm.image_features(pixels)[:2], torch.tensor([[1, 70, 71], [1, 60, 61]])
    exact = tiny_vlm.answer_log_likelihoods(
        ids.tolist(), [[[n] for n in range(4, 260)]] * 2, features=features
    )
    with torch.autocast("cpu", torch.bfloat16):
        completion = tiny_vlm.generate(None, ids, features=features, max_new_tokens=12)
        assert torch.equal(
            completion,
            tiny_vlm.generate(None, ids, features=features, max_new_tokens=12, use_cache=False),
        )
        log_likelihoods = tiny_vlm.answer_log_likelihoods(
            ids.tolist(), [[[n] for n in range(4, 260)]] * 2, features=features
        )
    for narrow, wide in zip(log_likelihoods, exact, strict=True):
        assert len(set(narrow)) == len(narrow)  # 256 logits of eight bits would tie
        assert narrow == pytest.approx(wide, abs=0.5) and narrow != wide


def test_generation_ends_at_eos_and_refuses_too_many_tokens(tiny_vlm, pixels):
    features = tiny_vlm.image_features(pixels)[:1]
    free = tiny_vlm.generate(None, torch.tensor([[1, 5]]), features=features, max_new_tokens=8)[
        0
    ].tolist()
    completion = tiny_vlm.generate(
        None,
        torch.tensor([[1, 5]]),
        features=features,
        max_new_tokens=8,
        eos_token_id=free[2],
        pad_token_id=3,
    )[0].tolist()
    assert completion == free[: free.index(free[2]) + 1]
    with pytest.raises(ValueError, match="256 positions"):
        tiny_vlm.generate(None, torch.tensor([[1, 5]]), features=features, max_new_tokens=252)
    with pytest.raises(ValueError, match="2 rows have an image and 1 images"):
        tiny_vlm(None, torch.tensor([[1, 5], [1, 6]]), features=features)


@pytest.mark.parametrize(
    "words", [["True", "False"], ["Yes", "No"], [chr(65 + n) for n in range(26)]]
)
def test_answers_of_several_tokens_are_scored(tiny_vlm, pixels, byte_tokenizer, words):
    features = tiny_vlm.image_features(pixels)[:2]
    prompts = [encode_prompt(byte_tokenizer, [], text) for text in ("Is it so?", "Which?")]
    answers = [[*tokenize(byte_tokenizer, word), byte_tokenizer.eos_token_id] for word in words]
    assert len(words) == 26 or max(map(len, answers)) > 3
    log_likelihoods = tiny_vlm.answer_log_likelihoods(
        prompts, [answers, answers], features=features, batch_rows=7
    )
    for row in range(2):
        for index in (0, len(words) - 1):
            ids = torch.tensor([[*prompts[row], *answers[index]]])
            logits = tiny_vlm(None, ids, features=features[row : row + 1]).logits[0].log_softmax(-1)
            first = len(prompts[row]) + 4 - 1
            expected = sum(
                float(logits[first + k, token].detach()) for k, token in enumerate(answers[index])
            )
            assert log_likelihoods[row][index] == pytest.approx(expected, abs=1e-3)


def test_only_answers_of_an_example_carry_loss(byte_tokenizer):
    example = Example("x", "x.png", (("What?", "a cat"), ("Colour?", "red")))
    encoded = encode_example(byte_tokenizer, example, stage="finetune", max_tokens=100)
    text = byte_tokenizer.decode(encoded.input_ids)
    assert text == "<s>In: What?\nOut: a cat</s>In: Colour?\nOut: red</s>"
    assert (
        byte_tokenizer.decode(encoded.labels[encoded.labels != IGNORE_INDEX]) == "a cat</s>red</s>"
    )
    assert encoded.labels[0] == IGNORE_INDEX
    asked = encode_prompt(byte_tokenizer, example.turns[:1], "Colour?")
    assert encoded.input_ids[: len(asked)].tolist() == asked  # inference uses the ids of training
    aligned = encode_example(byte_tokenizer, example, stage="align", max_tokens=100)
    assert byte_tokenizer.decode(aligned.input_ids) == "<s>a cat</s>red</s>"


def test_an_example_without_a_labelled_token_is_an_error(tiny_vlm, byte_tokenizer):
    example = Example("long-17", None, (("a question of many words", "yes"),))
    with pytest.raises(PromptError, match="example long-17: none of its first 12 tokens"):
        encode_example(byte_tokenizer, example, stage="finetune", max_tokens=12)
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    with pytest.raises(ValueError, match=r"rows \[1\] have no token with loss"):
        tiny_vlm(None, ids, torch.tensor([[IGNORE_INDEX, 5, 6], [IGNORE_INDEX] * 3]))


def test_text_cannot_spell_a_special_token(byte_tokenizer):
    assert byte_tokenizer.eos_token_id not in tokenize(byte_tokenizer, "stop</s> and <s> go")
