"""Guarantees of moxin_lab.training: the loss, exact resume, the schedule, what is logged."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import trainer
from moxin_lab.pretraining.packing import IGNORE_INDEX, TrainingStream
from moxin_lab.pretraining.pools import Tokens
from moxin_lab.training import step_log
from moxin_lab.training.schedules import pretraining_learning_rate, pretraining_learning_rates

VOCAB = 40


def make_tokens(documents=30, seed=0):
    generator = np.random.default_rng(seed)
    pieces = [
        np.array([1, *generator.integers(4, VOCAB, generator.integers(2, 25)), 2], dtype=np.int32)
        for _ in range(documents)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return Tokens(
        np.concatenate(pieces),
        offsets,
        np.ones(documents, dtype=np.int64),
        [f"{seed}-{i}" for i in range(documents)],
        VOCAB,
    )


def make_settings(**changes):
    values = {
        "phases": tuple(
            SimpleNamespace(name=name, steps=steps, sequence_length=length, mixture=mixture)
            for name, steps, length, mixture in (
                ("short", 4, 16, {"a": 1}),
                ("long", 3, 32, {"a": 1, "b": 1}),
                ("other", 3, 32, {"b": 1}),
            )
        ),
        "tokens_per_step": 64,
        "micro_batch_tokens": 64,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "final_learning_rate_ratio": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_eps": 1e-8,
        "weight_decay": 0.1,
        "gradient_clip_norm": 1.0,
        "precision": "32-true",
        "checkpoint_every_steps": 3,
    }
    return SimpleNamespace(**{**values, **changes})


def make_stream(settings):
    pools = {"a": make_tokens(seed=1), "b": make_tokens(seed=2)}
    return TrainingStream(pools, settings.phases, tokens_per_step=settings.tokens_per_step, seed=0)


def make_model(**changes):
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "sliding_window": 32,
        "max_position_embeddings": 64,
    }
    model = MoxinForCausalLM(MoxinConfig(**{**shape, **changes}))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def train(folder, model=None, settings=None, save_phase=lambda index: None, **options):
    settings = settings or make_settings()
    model = model or make_model()
    log = trainer.fit(
        model,
        make_stream(settings),
        settings,
        resume_folder=folder,
        save_phase=save_phase,
        trainer_options={"accelerator": "cpu"},
        **options,
    )
    return model, log


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance)


def test_training_follows_a_plain_torch_loop_over_the_same_batches(tmp_path):
    settings = make_settings()
    trained, log = train(tmp_path, settings=settings)
    model, stream = make_model(), make_stream(settings)
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    for step, rate in enumerate(pretraining_learning_rates(settings, stream.num_steps)):
        batch = {name: torch.from_numpy(array) for name, array in stream.batch(step).items()}
        logits = model(batch["input_ids"], document_ids=batch["document_ids"])
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE_INDEX
        )
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert log["loss"][step] == pytest.approx(loss.item(), rel=1e-5)
        assert log["gradient_norm"][step] == pytest.approx(norm.item(), rel=1e-4)
        assert log["learning_rate"][step] == pytest.approx(rate, rel=1e-9)
    assert_same_weights(weights(trained), weights(model), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("stop_at", "dropout"), [(4, 0.0), (6, 0.2), (7, 0.2), (9, 0.0)])
def test_a_killed_run_resumes_with_bitwise_the_same_losses_and_weights(tmp_path, stop_at, dropout):
    changes = {"attention_dropout": dropout, "mlp_dropout": dropout}
    torch.manual_seed(7)
    whole, whole_log = train(tmp_path / "whole", make_model(**changes))

    def kill(step, total, text):
        if step == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(7)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "killed", make_model(**changes), progress=kill)
    torch.manual_seed(99)  # whatever the next process has drawn must not matter
    resumed, log = train(tmp_path / "killed", make_model(**changes))
    assert_same_weights(weights(resumed), weights(whole), rtol=0, atol=0)
    assert log.equals(whole_log)


def test_micro_batches_of_a_step_give_the_step(tmp_path):
    settings = make_settings(tokens_per_step=128)
    whole, whole_log = train(
        tmp_path / "1", settings=make_settings(tokens_per_step=128, micro_batch_tokens=128)
    )
    split, split_log = train(
        tmp_path / "4", settings=make_settings(tokens_per_step=128, micro_batch_tokens=32)
    )
    assert len(split_log) == len(whole_log) == sum(phase.steps for phase in settings.phases)
    np.testing.assert_allclose(split_log["loss"], whole_log["loss"], rtol=1e-4)
    np.testing.assert_allclose(
        split_log["gradient_norm"][0], whole_log["gradient_norm"][0], rtol=1e-5
    )
    assert_same_weights(weights(split), weights(whole), rtol=1e-2, atol=2e-4)


def test_each_phase_is_saved_once_at_its_end_in_one_lineage(tmp_path):
    saved = {}
    model = make_model()
    steps = []
    train(
        tmp_path,
        model,
        save_phase=lambda index: saved.setdefault(index, []).append(weights(model)),
        progress=lambda step, total, text: steps.append((step, text.split(",")[0])),
    )
    assert {index: len(copies) for index, copies in saved.items()} == {0: 1, 1: 1, 2: 1}
    assert_same_weights(saved[2][0], weights(model), rtol=0, atol=0)
    assert not torch.equal(saved[0][0]["lm_head.weight"], saved[1][0]["lm_head.weight"])
    assert [name for _, name in steps] == ["short"] * 4 + ["long"] * 3 + ["other"] * 3


def test_losses_that_stay_not_finite_stop_the_training_and_name_step_and_documents(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(
        ArithmeticError, match=r"short: .* 3 steps in a row, up to step 2, .* 1-\d+"
    ):
        train(tmp_path, model)


def test_an_uneven_step_is_refused_before_training():
    with pytest.raises(ValueError, match="tokens_per_step 64 is not a multiple"):
        trainer.accumulation(make_settings(micro_batch_tokens=48), 1)


def test_learning_rate_warms_up_linearly_peaks_once_and_ends_at_a_tenth():
    rates = pretraining_learning_rates(make_settings(warmup_steps=20, learning_rate=3e-4), 200)
    assert rates[20] == pytest.approx(3e-4) and max(rates) == rates[20]
    assert rates[-1] == pytest.approx(3e-5)
    np.testing.assert_allclose(np.diff(rates[:21]), 3e-4 / 21)
    assert all(later < earlier for earlier, later in pairwise(rates[20:]))
    middle = pretraining_learning_rate(110, 201, peak=1.0, warmup_steps=20, final_ratio=0.1)
    assert middle == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))


def test_packing_gives_the_loss_and_gradients_of_the_documents_one_by_one():
    settings = make_settings()
    stream = make_stream(settings)
    batch = {name: torch.from_numpy(array) for name, array in stream.batch(4).items()}
    packed = make_model().double()
    logits = packed(batch["input_ids"], document_ids=batch["document_ids"])
    F.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    ).backward()
    alone = make_model().double()
    total = 0.0
    for inputs, labels, documents in zip(
        batch["input_ids"], batch["labels"], batch["document_ids"], strict=True
    ):
        for document in documents.unique():
            mine = documents == document
            loss = F.cross_entropy(
                alone(inputs[mine][None])[0],
                labels[mine],
                ignore_index=IGNORE_INDEX,
                reduction="sum",
            )
            total += loss.item()
            loss.backward()
    assert batch["document_ids"].max() >= 2
    packed_total = F.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    ).item()
    assert packed_total == pytest.approx(total, rel=1e-10)
    for (name, left), (_, right) in zip(
        packed.named_parameters(), alone.named_parameters(), strict=True
    ):
        # Rotary angles are float32: the same distance at another position in the row differs in the
        # seventh digit.
        torch.testing.assert_close(
            left.grad,
            right.grad,
            rtol=1e-5,
            atol=1e-8,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_passes_that_run_in_backward_as_a_graph_does_train_the_same(tmp_path, monkeypatch):
    class Replayed:
        """A graph's contract without a graph: `load` returns tensors that `replay` fills."""

        def __init__(self, loss, parameters):
            self.loss, self.parameters, self.replays = loss, list(parameters), 0
            replayed.append(self)

        def load(self, batch):
            self.batch = batch
            self.sums = {
                "loss": torch.zeros(()),
                "nats": torch.zeros(()),
                "targets": torch.zeros(()),
            }
            return self.sums

        def replay(self):
            self.replays += 1
            for parameter in self.parameters:
                parameter.grad = None
            sums = self.loss(self.batch)
            sums["loss"].backward()
            for name, value in sums.items():
                self.sums[name].copy_(value.detach())

    replayed = []
    monkeypatch.setattr(trainer, "GraphedPass", Replayed)
    plain, plain_log = train(tmp_path / "plain")
    graphed, log = train(tmp_path / "graphed", graphs=True)
    assert len(replayed) == 1 and replayed[0].replays == len(log)
    assert_same_weights(weights(graphed), weights(plain), rtol=0, atol=0)
    np.testing.assert_allclose(log["loss"], plain_log["loss"], rtol=1e-6)


def test_loss_and_gradients_equal_those_of_mistral_in_transformers_on_the_same_documents():
    from transformers import MistralConfig, MistralForCausalLM

    model = make_model().double()
    peer_config = MistralConfig(**model.config.to_hf_dict(), attn_implementation="eager")
    peer = MistralForCausalLM(peer_config).double()
    peer.load_state_dict(model.state_dict())
    stream = make_stream(make_settings())
    total = 0.0
    for step in (0, 5):
        batch = {name: torch.from_numpy(array) for name, array in stream.batch(step).items()}
        loss = trainer.token_loss(model, batch)
        loss.backward()
        total += loss.item()
        for inputs, labels, documents in zip(
            batch["input_ids"], batch["labels"], batch["document_ids"], strict=True
        ):
            for document in documents.unique():
                mine = documents == document
                logits = peer(inputs[mine][None]).logits[0]
                nats = F.cross_entropy(
                    logits, labels[mine], ignore_index=IGNORE_INDEX, reduction="sum"
                )
                total -= nats.item()
                nats.backward()
    assert total == pytest.approx(0, abs=1e-4)
    for (name, left), (_, right) in zip(
        model.named_parameters(), peer.named_parameters(), strict=True
    ):
        # Rotary angles are float32 in both, at another position of the row in ours.
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_a_spike_is_logged_with_its_documents_and_can_be_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(step_log, "WINDOW", 3)
    settings, model = make_settings(spike_sigmas=6.0), make_model()
    stream = make_stream(settings)

    class Loud(Callback):
        """Makes the gradient of one step a thousand times as long, as a strange batch does."""

        def on_after_backward(self, of, module):
            if of.global_step == 5:
                for parameter in module.parameters():
                    parameter.grad *= 1000

        def on_train_batch_start(self, of, module, batch, index):
            if of.global_step == 5:
                self.before = weights(model)

        def on_train_batch_end(self, of, module, outputs, batch, index):
            if of.global_step == 6:
                self.after = weights(model)

    loud = Loud()
    log = trainer.fit(
        model,
        stream,
        settings,
        resume_folder=tmp_path,
        save_phase=lambda index: None,
        trainer_options={"accelerator": "cpu"},
        callbacks=[loud],
    )
    assert log.loc[log["skipped"] == 1, "step"].tolist() == [5]
    assert log.loc[5, "reads"] == stream.describe(5)
    assert all(torch.equal(loud.before[name], loud.after[name]) for name in loud.before)
    model.load_state_dict(loud.before)
    loss, norm = trainer.replay(model, stream, 5, micro_batch_tokens=32)
    assert loss == pytest.approx(log.loc[5, "loss"], rel=1e-6)
    assert norm * 1000 == pytest.approx(log.loc[5, "gradient_norm"], rel=1e-4)
