"""Guarantees of preference optimisation: TRL's losses, any cut of a step, a reference computed once
and never mistaken.
"""

import numpy as np
import pytest
import torch

from moxin_lab.model.convert import save_pretrained
from moxin_lab.posttraining import chat, dpo
from moxin_lab.training.fit import fit_language_model
from moxin_lab.training.loss import IGNORE_INDEX
from tests.posttraining.examples import (
    gradient_norm,
    make_model,
    make_settings,
    make_sides,
    make_tokenizer,
)

TOKENIZER = make_tokenizer()


def make_pairs(count=16):
    pairs, _ = dpo.encode_pairs(
        *make_sides(count), TOKENIZER, max_tokens=256, max_refused_share=0.0
    )
    return pairs


def make_stream(pairs, reference, **changes):
    options = {
        "examples_per_step": 8,
        "epochs": 1,
        "row_tokens": 255,
        "seed": 0,
        "pad_id": 0,
        "layout": "packed",
    }
    return dpo.PairStream(pairs, reference, **{**options, **changes})


def reference_of(pairs, seed=5):
    return dpo.pair_log_probs(make_model(seed), pairs, batch_tokens=1024)


def step_loss(model, stream, parts, *, loss_type="dpo_norm", beta=5.0, step=0):
    model.zero_grad()
    total = 0.0
    for part in range(parts):
        loss = dpo.dpo_loss(loss_type, beta)(model, stream.batch(step, part, parts))["loss"]
        loss.backward()
        total += loss.item()
    return total, gradient_norm(model)


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    folder = tmp_path_factory.mktemp("trl")
    save_pretrained(make_model(), folder / "model")
    save_pretrained(make_model(5), folder / "reference")
    chosen, rejected = make_sides(8)
    rows = {
        "prompt": [side[:-1] for side in chosen],
        "chosen": [side[-1:] for side in chosen],
        "rejected": [side[-1:] for side in rejected],
    }
    arguments = DPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        report_to=[],
        max_length=256,
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        loss_type=["sigmoid"],
        beta=0.1,
        disable_dropout=True,
    )
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        AutoModelForCausalLM.from_pretrained(folder / "reference"),
        args=arguments,
        processing_class=make_tokenizer(),
        train_dataset=datasets.Dataset.from_dict(rows),
    )


@pytest.mark.parametrize(
    ("loss_type", "theirs", "beta", "smoothing"),
    [
        ("sigmoid", "sigmoid", 0.1, 0.0),
        ("dpo_norm", "sigmoid_norm", 5.0, 0.0),
        ("ipo", "ipo", 0.5, 0.0),
    ],
)
def test_losses_and_gradients_equal_trls_dpo_trainer(
    trl_trainer, loss_type, theirs, beta, smoothing
):
    trl_trainer.loss_types, trl_trainer.beta, trl_trainer.label_smoothing = (
        [theirs],
        beta,
        smoothing,
    )
    batch = trl_trainer.data_collator([trl_trainer.train_dataset[number] for number in range(8)])
    trl_trainer.model.zero_grad()
    expected = trl_trainer.compute_loss(trl_trainer.model, dict(batch))
    expected.backward()
    pairs = make_pairs(8)
    model = make_model()
    ours, norm = step_loss(
        model, make_stream(pairs, reference_of(pairs)), 1, loss_type=loss_type, beta=beta
    )
    assert (
        abs(expected.item() - {"sigmoid": np.log(2), "dpo_norm": np.log(2), "ipo": 1.0}[loss_type])
        > 1e-3
    )
    assert ours == pytest.approx(expected.item(), abs=1e-6)
    assert norm == pytest.approx(gradient_norm(trl_trainer.model), rel=1e-5)


def test_label_smoothing_mixes_the_loss_with_that_of_the_swapped_pair():
    draw = torch.Generator().manual_seed(0)
    log_probs, reference = torch.randn(6, 2, generator=draw), torch.randn(6, 2, generator=draw)
    tokens = torch.randint(1, 9, (6, 2), generator=draw)
    for loss_type in ("sigmoid", "dpo_norm"):
        plain = dpo.preference_losses(log_probs, reference, tokens, loss_type=loss_type, beta=2.0)
        swapped = dpo.preference_losses(
            log_probs.flip(1), reference.flip(1), tokens.flip(1), loss_type=loss_type, beta=2.0
        )
        mixed = dpo.preference_losses(
            log_probs, reference, tokens, loss_type=loss_type, beta=2.0, label_smoothing=0.2
        )
        torch.testing.assert_close(mixed, 0.8 * plain + 0.2 * swapped)
    with pytest.raises(ValueError, match="not for ipo"):
        dpo.preference_losses(
            log_probs, reference, tokens, loss_type="ipo", beta=1.0, label_smoothing=0.1
        )
    with pytest.raises(
        ValueError, match="unknown preference loss 'hinge': available are sigmoid, dpo_norm, ipo"
    ):
        dpo.preference_losses(log_probs, reference, tokens, loss_type="hinge", beta=1.0)


def test_the_length_normalised_loss_alone_does_not_change_when_an_answer_is_repeated():
    log_probs, reference = torch.tensor([[-4.0, -3.0]]), torch.tensor([[-5.0, -2.5]])
    tokens, twice = torch.tensor([[4, 3]]), torch.tensor([[2, 1]])
    for loss_type, same in (("sigmoid", False), ("dpo_norm", True), ("ipo", True)):
        once = dpo.preference_losses(log_probs, reference, tokens, loss_type=loss_type, beta=1.0)
        longer = dpo.preference_losses(
            log_probs * twice, reference * twice, tokens * twice, loss_type=loss_type, beta=1.0
        )
        assert torch.allclose(once, longer) == same


@pytest.mark.parametrize(("loss_type", "beta"), [("sigmoid", 0.1), ("dpo_norm", 5.0), ("ipo", 0.5)])
def test_eight_micro_batches_of_one_pair_give_one_of_eight_with_unequal_answers(loss_type, beta):
    pairs = make_pairs()
    stream = make_stream(pairs, reference_of(pairs))
    counts = stream.batch(0)["num_tokens"]
    assert counts.max() > 2 * counts.min()
    found = [
        step_loss(make_model(), stream, parts, loss_type=loss_type, beta=beta)
        for parts in (1, 2, 8)
    ]
    padded = step_loss(
        make_model(),
        make_stream(pairs, reference_of(pairs), layout="padded"),
        4,
        loss_type=loss_type,
        beta=beta,
    )
    for loss, norm in [*found[1:], padded]:
        assert loss == pytest.approx(found[0][0], rel=1e-5) and norm == pytest.approx(
            found[0][1], rel=1e-5
        )


def test_training_raises_the_chosen_answer_over_the_rejected_one_and_its_cut_does_not_matter(
    tmp_path,
):
    pairs = make_pairs()
    start = make_model()
    reference = dpo.pair_log_probs(start, pairs, batch_tokens=1024)
    logs = []
    for name, micro in (("whole", 8), ("cut", 2)):
        model, stream = make_model(), make_stream(pairs, reference, epochs=6)
        logs.append(
            fit_language_model(
                model,
                stream,
                make_settings(micro_batch_examples=micro),
                dpo.dpo_loss("dpo_norm", 5.0),
                resume_folder=tmp_path / name,
                text="DPO",
                trainer_options={"accelerator": "cpu"},
            )
        )
        after = dpo.pair_log_probs(model, pairs, batch_tokens=1024)
        lengths = np.array([[pair.chosen.num_targets, pair.rejected.num_targets] for pair in pairs])
        margins = np.diff((after - reference) / lengths, axis=1)[:, 0]
        assert (margins < 0).mean() > 0.9  # rejected minus chosen
    whole, cut = logs
    assert whole["loss"][0] == pytest.approx(np.log(2), abs=1e-6) and whole["loss"].iloc[-1] < 0.5
    np.testing.assert_allclose(cut["loss"], whole["loss"], rtol=2e-3)
    np.testing.assert_allclose(cut["gradient_norm"][0], whole["gradient_norm"][0], rtol=1e-5)
    assert (whole["pairs"] == 8).all()


def test_only_the_last_answer_carries_loss():
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "shared"}]
    sides = [
        [*history, {"role": "user", "content": "b"}, {"role": "assistant", "content": text}]
        for text in ("yes", "no")
    ]
    (pair,), _ = dpo.encode_pairs(
        [sides[0]], [sides[1]], TOKENIZER, max_tokens=99, max_refused_share=0.0
    )
    found = [TOKENIZER.decode(side.input_ids[side.answer]) for side in (pair.chosen, pair.rejected)]
    assert found == ["yes</s>", "no</s>"]
    reference = np.zeros((1, 2))
    batch = make_stream([pair], reference, examples_per_step=1).batch(0)
    assert (
        batch["num_tokens"].tolist() == [[4, 3]]
        and int((batch["labels"] != IGNORE_INDEX).sum()) == 7
    )


def test_pairs_that_cannot_be_compared_are_counted_and_refused_above_the_share():
    chosen, rejected = make_sides(6)
    rejected[0] = chosen[0]
    rejected[1] = [{"role": "user", "content": "other"}, rejected[1][-1]]
    rejected[2] = rejected[2][:-1]
    rejected[3] = [*rejected[3][:-1], {"role": "assistant", "content": "x" * 400}]
    pairs, report = dpo.encode_pairs(
        chosen, rejected, TOKENIZER, max_tokens=200, max_refused_share=0.7
    )
    assert [pair.index for pair in pairs] == [4, 5]
    lost = {name: int(count) for name, count in report["pairs"].items() if count}
    assert lost == {chat.MALFORMED: 1, chat.CUT: 1, dpo.EQUAL: 1, dpo.OTHER_PROMPT: 1}
    with pytest.raises(
        chat.ChatError,
        match=r"4 of 6 pairs cannot be compared, more than the stated share of 50\.0%",
    ):
        dpo.encode_pairs(chosen, rejected, TOKENIZER, max_tokens=200, max_refused_share=0.5)
    with pytest.raises(chat.ChatError, match="6 chosen and 5 rejected"):
        dpo.encode_pairs(chosen, rejected[:5], TOKENIZER, max_tokens=200, max_refused_share=0.5)


def test_the_reference_is_computed_once_and_cached_for_these_weights_and_pairs_only(
    tmp_path, monkeypatch
):
    pairs, model = make_pairs(4), make_model()
    calls = []
    compute = dpo.pair_log_probs
    monkeypatch.setattr(dpo, "pair_log_probs", lambda *a, **k: calls.append(1) or compute(*a, **k))
    first = dpo.reference_log_probs(model, pairs, tmp_path, batch_tokens=512)
    again = dpo.reference_log_probs(make_model(), make_pairs(4), tmp_path, batch_tokens=512)
    assert np.array_equal(first, again) and len(calls) == 1
    other = dpo.reference_log_probs(make_model(1), pairs, tmp_path, batch_tokens=512)
    fewer = dpo.reference_log_probs(model, pairs[:3], tmp_path, batch_tokens=512)
    assert len(calls) == 3 and not np.allclose(first, other) and np.allclose(fewer, first[:3])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    dpo.reference_log_probs(model, pairs, tmp_path, batch_tokens=512)
    assert len(calls) == 4


def test_log_probabilities_do_not_depend_on_batches_and_are_the_models_own():
    pairs, model = make_pairs(5), make_model()
    together = dpo.pair_log_probs(model, pairs, batch_tokens=100_000)
    np.testing.assert_allclose(
        dpo.pair_log_probs(model, pairs, batch_tokens=1), together, atol=1e-4
    )
    side = pairs[3].rejected
    ids = torch.from_numpy(side.input_ids)
    log_probs = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    assert together[3, 1] == pytest.approx(
        log_probs[torch.from_numpy(side.answer[1:])].sum().item(), abs=1e-4
    )
