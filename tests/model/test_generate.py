"""Generation over the rolling cache: the tokens of transformers, rows independent of their batch,
samples from the intended set.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import generation_config
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import generate, sample, stream

CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    max_position_embeddings=128,
    initializer_range=0.3,
    pad_token_id=3,
)


@pytest.fixture(scope="module")
def model() -> MoxinForCausalLM:
    return MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(7)).eval()


def prompt(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(4, 61, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [3, 8, 29])
def test_greedy_tokens_equal_transformers_generate(
    model: MoxinForCausalLM, tmp_path: Path, length: int
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(save_pretrained(model, tmp_path))
    ids = prompt(length, batch=2)
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
    )
    ours = generate(model, ids, max_new_tokens=40)
    assert ours.tolist() == expected.tolist()
    # Not a constant output, which any model could match.
    assert len(set(ours[0, length:].tolist())) > 3


def test_a_row_of_a_padded_batch_gets_what_it_gets_alone(model: MoxinForCausalLM) -> None:
    short, long = prompt(5), prompt(19)
    batch = torch.cat((torch.cat((torch.full((1, 14), 3), short), dim=1), long))
    mask = torch.ones_like(batch)
    mask[0, :14] = 0
    together = generate(model, batch, attention_mask=mask, max_new_tokens=30, prefill_chunk=6)
    assert together[0, 14:].tolist() == generate(model, short, max_new_tokens=30)[0].tolist()
    assert together[1].tolist() == generate(model, long, max_new_tokens=30)[0].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 8, 9, 64])
def test_the_prefill_chunk_does_not_matter(model: MoxinForCausalLM, chunk: int) -> None:
    ids = prompt(40)
    assert torch.equal(
        generate(model, ids, max_new_tokens=20, prefill_chunk=chunk),
        generate(model, ids, max_new_tokens=20),
    )


def test_a_row_is_padded_after_eos_and_the_stream_ends_when_every_row_has_ended(
    model: MoxinForCausalLM,
) -> None:
    ids = prompt(6, batch=2)
    free = generate(model, ids, max_new_tokens=25)[:, 6:]
    first = {int(token): index for index, token in reversed(list(enumerate(free[0].tolist())))}
    eos = next(
        token
        for token, index in first.items()
        if index >= 2 and token not in free[1, : index + 1].tolist()
    )
    stopped = generate(model, ids, max_new_tokens=25, eos_token_id=eos, pad_token_id=3)[:, 6:]
    index = first[eos]
    assert stopped[0, : index + 1].tolist() == free[0, : index + 1].tolist()
    assert set(stopped[0, index + 1 :].tolist()) <= {3}
    alone = list(stream(model, ids[:1], max_new_tokens=25, eos_token_id=eos))
    assert len(alone) == index + 1


def test_sampling_is_seeded_and_follows_temperature_and_top_p() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1.0, 0.7, [0.625, 0.375, 0.0, 0.0]),
        (1.0, 0.5, [1.0, 0.0, 0.0, 0.0]),
        (1.0, 0.01, [1.0, 0.0, 0.0, 0.0]),
        (0.0, 1.0, [1.0, 0.0, 0.0, 0.0]),
    ):
        drawn = sample(logits, temperature=temperature, top_p=top_p, generator=generator)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.015)
        if 0.0 in expected:
            assert set(drawn.tolist()) == {i for i, share in enumerate(expected) if share}


def test_the_same_generator_gives_the_same_text(model: MoxinForCausalLM) -> None:
    runs = [
        generate(
            model,
            prompt(5),
            max_new_tokens=30,
            temperature=1.0,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 200}, "more than the 128 positions"),
        ({"max_new_tokens": 2, "temperature": -1.0}, "temperature -1.0"),
        ({"max_new_tokens": 2, "top_p": 0.0}, "top_p 0.0"),
        (
            {"max_new_tokens": 2, "attention_mask": torch.tensor([[1, 1, 0, 1]])},
            "pad prompts on the left",
        ),
        ({"max_new_tokens": 2, "attention_mask": torch.ones(1, 3)}, "attention_mask has shape"),
    ],
)
def test_settings_out_of_range_raise_an_error_that_names_them(
    model: MoxinForCausalLM, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, prompt(4), **options)


def test_a_folder_that_asks_for_more_than_our_generation_does_is_refused(tmp_path):
    generation_config.check(tmp_path)  # no file asks for nothing
    file = tmp_path / "generation_config.json"
    GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, repetition_penalty=1.0
    ).save_pretrained(tmp_path)
    generation_config.check(tmp_path)
    for options, named in (
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"min_new_tokens": 4}, "min_new_tokens=4"),
        ({"stop_strings": ["x"]}, r"stop_strings=\['x'\]"),
    ):
        GenerationConfig(**options).save_pretrained(tmp_path)
        with pytest.raises(LabError, match=f"generation_config.json asks for {named}, which our"):
            generation_config.check(tmp_path)
    file.write_text("[]")
    with pytest.raises(LabError, match="holds no JSON object"):
        generation_config.check(tmp_path)


def test_every_option_of_transformers_is_harmless_or_refused_when_set():
    known = generation_config.HARMLESS | generation_config.NEUTRAL.keys()
    for name in GenerationConfig().to_dict().keys() - known:
        assert generation_config.unfollowed({name: 3}) == [f"{name}=3"]
    # A name that transformers does not have is a mistake of ours.
    of_old_versions = {"use_mtp", "top_h", "cache_config", "max_cache_len"}
    assert known - vars(GenerationConfig()).keys() <= of_old_versions


@pytest.mark.parametrize("ids", [[[4, 61]], [[4, -1]], [[10**9, 5]]])
def test_an_id_beyond_the_vocabulary_is_named_before_any_work(model, ids):
    with pytest.raises(ValueError, match=r"ids from .* vocabulary has 61: use the tokenizer"):
        generate(model, torch.tensor(ids), max_new_tokens=2)
