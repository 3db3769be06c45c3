"""Guarantees of supervised fine-tuning: TRL's loss, packing equals padding, any cut of a step,
resume, a portable export.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moxin_lab.model.convert import save_pretrained
from moxin_lab.posttraining import chat, dpo, prompts, sft
from moxin_lab.posttraining.batches import (
    IGNORE_INDEX,
    REDUCTIONS,
    ConversationStream,
    lay_out,
    rows_used,
)
from moxin_lab.training import fit, schedules
from moxin_lab.training.fit import Order, fit_language_model
from tests.posttraining.examples import (
    gradient_norm,
    make_conversations,
    make_model,
    make_settings,
    make_sides,
    make_tokenizer,
)

TOKENIZER = make_tokenizer()
HERE = Path(__file__).parent


def encode(conversations=None, max_tokens=256):
    kept, _ = chat.encode_all(
        make_conversations() if conversations is None else conversations,
        TOKENIZER,
        max_tokens=max_tokens,
        max_refused_share=0.0,
    )
    return kept


def make_stream(encoded=None, **changes):
    options = {
        "examples_per_step": 8,
        "epochs": 2,
        "row_tokens": 255,
        "seed": 0,
        "pad_id": 0,
        "layout": "packed",
        "reduction": "mean",
    }
    return ConversationStream(encode() if encoded is None else encoded, **{**options, **changes})


def train(folder, model=None, settings=None, stream=None, **options):
    model = model or make_model()
    log = fit_language_model(
        model,
        stream or make_stream(),
        settings or make_settings(),
        sft.sft_loss(),
        resume_folder=folder,
        text="SFT",
        trainer_options={"accelerator": "cpu"},
        **options,
    )
    return model, log


def step_loss(model, stream, parts, step=0, label_smoothing=0.0):
    """Loss and gradient norm of a step that is cut into `parts`, as `fitting` adds them up."""
    model.zero_grad()
    total = 0.0
    for part in range(parts):
        loss = sft.sft_loss(label_smoothing)(model, stream.batch(step, part, parts))["loss"]
        loss.backward()
        total += loss.item()
    return total, gradient_norm(model)


def test_loss_equals_trls_sft_trainer(tmp_path):
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = make_model()
    save_pretrained(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    conversations = make_conversations(8)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        assistant_only_loss=True,
        use_cpu=True,
        report_to=[],
        max_length=256,
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        shuffle_dataset=False,
    )
    trainer = SFTTrainer(
        theirs,
        args=arguments,
        processing_class=make_tokenizer(),
        train_dataset=datasets.Dataset.from_dict({"messages": conversations}),
    )
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(8)])
    targets = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    theirs_loss = trainer.compute_loss(
        trainer.model.eval(), dict(batch), num_items_in_batch=targets
    )
    theirs_loss.backward()
    ours, norm = step_loss(model, make_stream(encode(conversations)), parts=1)
    assert targets == sum(encoded.num_targets for encoded in encode(conversations))
    assert ours == pytest.approx(theirs_loss.item(), abs=1e-6)
    assert norm == pytest.approx(gradient_norm(theirs), rel=1e-5)


def test_label_smoothing_is_torchs():
    model, batch = make_model(), make_stream().batch(0)
    smoothed, plain, chosen = sft.token_losses(model, batch, label_smoothing=0.1)
    logits = model(batch["input_ids"], document_ids=batch["document_ids"])[chosen]
    labels = batch["labels"][chosen]
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(
        smoothed, cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    )
    torch.testing.assert_close(plain, cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_packing_gives_the_loss_and_gradient_of_padding(reduction):
    packed, padded = (
        make_stream(layout=layout, reduction=reduction) for layout in ("packed", "padded")
    )
    first, second = packed.batch(1)["input_ids"], padded.batch(1)["input_ids"]
    assert len(first) < len(second) == 8
    (loss, norm), (padded_loss, padded_norm) = (
        step_loss(make_model(), stream, 1, step=1) for stream in (packed, padded)
    )
    assert loss == pytest.approx(padded_loss, rel=1e-5) and norm == pytest.approx(
        padded_norm, rel=1e-5
    )


@pytest.mark.parametrize("reduction", ["mean", "sequence"])
def test_eight_micro_batches_of_one_give_one_of_eight_with_unequal_answers(reduction):
    stream = make_stream(reduction=reduction)
    counts = [int((stream.batch(0, part, 8)["labels"] != IGNORE_INDEX).sum()) for part in range(8)]
    assert max(counts) > 2 * min(counts)
    found = [step_loss(make_model(), stream, parts) for parts in (1, 2, 8)]
    for loss, norm in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5) and norm == pytest.approx(
            found[0][1], rel=1e-5
        )


def test_each_reduction_equals_its_definition():
    model, encoded = make_model(), encode()
    nats, targets = sft.answer_nats(model, encoded, batch_tokens=512)
    taken = make_stream(encoded).order.step(0)
    losses = {
        name: step_loss(model, make_stream(encoded, reduction=name), 2)[0] for name in REDUCTIONS
    }
    halves = taken.reshape(2, 4)
    assert losses["mean"] == pytest.approx(nats[taken].sum() / targets[taken].sum(), rel=1e-5)
    assert losses["sequence"] == pytest.approx((nats[taken] / targets[taken]).mean(), rel=1e-5)
    assert losses["sum"] == pytest.approx(nats[taken].sum() / 2, rel=1e-5)
    assert losses["part_mean"] == pytest.approx(
        np.mean([nats[h].sum() / targets[h].sum() for h in halves]), rel=1e-5
    )
    # The trap: with these two the cut of a step changes what is learned, or how strongly.
    for name in ("sum", "part_mean"):
        assert step_loss(model, make_stream(encoded, reduction=name), 8)[0] != pytest.approx(
            losses[name], rel=1e-3
        )


def test_training_follows_a_plain_torch_loop_in_micro_batches(tmp_path):
    settings, stream = make_settings(micro_batch_examples=2), make_stream()
    trained, log = train(tmp_path, settings=settings, stream=stream)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(stream.num_steps):
        optimizer.zero_grad()
        loss, norm = 0.0, 0.0
        batch = stream.batch(step)
        share = sft.sft_loss()(model, batch)["loss"]
        share.backward()
        loss, norm = share.item(), gradient_norm(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * schedules.linear(step, stream.num_steps, 0.1)
        optimizer.step()
        assert log["loss"][step] == pytest.approx(loss, rel=1e-4)
        assert log["gradient_norm"][step] == pytest.approx(norm, rel=1e-3)
    assert (log["nats"] / log["targets"]).to_numpy() == pytest.approx(
        log["loss"].to_numpy(), rel=1e-4
    )
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-2, atol=1e-4)


def test_two_processes_give_the_losses_gradients_and_weights_of_one_in_sft_and_dpo(tmp_path):
    """As under torchrun: two ranks with gloo, each its part of every micro-batch, answers of
    unequal length.
    """
    pairs, _ = dpo.encode_pairs(*make_sides(), TOKENIZER, max_tokens=256, max_refused_share=0.0)
    reference = dpo.pair_log_probs(make_model(5), pairs, batch_tokens=1024)
    stream = dpo.PairStream(
        pairs, reference, examples_per_step=8, epochs=1, row_tokens=255, seed=0, pad_id=0
    )
    preferring = make_model()
    alone = {"SFT": train(tmp_path / "SFT", settings=make_settings(micro_batch_examples=8))}
    alone["DPO"] = (
        preferring,
        fit_language_model(
            preferring,
            stream,
            make_settings(),
            dpo.dpo_loss("dpo_norm", 5.0),
            resume_folder=tmp_path / "DPO",
            text="DPO",
            trainer_options={"accelerator": "cpu"},
        ),
    )
    plain = [
        [(side.input_ids, side.answer, side.index) for side in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    encoded = [(one.input_ids, one.answer, one.index) for one in encode()]
    (tmp_path / "two").mkdir()
    torch.save(
        {"encoded": encoded, "pairs": plain, "reference": reference},
        tmp_path / "two" / "examples.pt",
    )
    _run_two_ranks(tmp_path / "two")
    for name, (model, log) in alone.items():
        found = json.loads((tmp_path / "two" / f"{name}.json").read_text())
        np.testing.assert_allclose(found["loss"], log["loss"], rtol=1e-4)
        for column in ("loss", "gradient_norm"):
            np.testing.assert_allclose(
                found[column][0], log[column][0], rtol=1e-5, err_msg=f"{name}, {column}"
            )
        counted = "targets" if name == "SFT" else "pairs"
        assert found[counted] == log[counted].tolist()
        weights = torch.load(tmp_path / "two" / f"{name}.pt", weights_only=True)
        for parameter, tensor in model.state_dict().items():
            torch.testing.assert_close(weights[parameter], tensor, rtol=1e-2, atol=1e-4)


def _run_two_ranks(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    search_path = [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]
    ranks = []
    for rank in range(2):
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
        }
        command = [sys.executable, str(HERE / "two_ranks.py"), str(folder)]
        ranks.append(
            subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for rank in ranks:
        _, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors[-2000:]


@pytest.mark.parametrize(("stop_at", "dropout"), [(3, 0.1), (4, 0.0)])
def test_a_killed_run_resumes_with_bitwise_the_same_log_and_weights(tmp_path, stop_at, dropout):
    changes = {"attention_dropout": dropout, "mlp_dropout": dropout}
    settings = make_settings(micro_batch_examples=4)
    torch.manual_seed(7)
    whole, whole_log = train(tmp_path / "whole", make_model(**changes), settings)

    def kill(step, total, text):
        if step == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(7)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "killed", make_model(**changes), settings, progress=kill)
    torch.manual_seed(99)
    resumed, log = train(tmp_path / "killed", make_model(**changes), settings)
    assert log.equals(whole_log)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_dropout_acts_in_training_and_not_when_answers_are_scored(tmp_path):
    encoded = encode()
    still, shaken = make_model(), make_model(mlp_dropout=0.1, attention_dropout=0.1)
    batch = make_stream(encoded).batch(0)
    shaken.train()
    assert not torch.equal(sft.token_losses(still, batch)[1], sft.token_losses(shaken, batch)[1])
    np.testing.assert_array_equal(
        sft.answer_nats(still, encoded, batch_tokens=512)[0],
        sft.answer_nats(shaken.eval(), encoded, batch_tokens=512)[0],
    )


def test_the_exported_model_answers_through_a_pipeline_with_nothing_of_ours_imported(tmp_path):
    model = make_model()
    save_pretrained(model, tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    prompt = [{"role": "system", "content": "Count."}, {"role": "user", "content": "三"}]
    program = (
        "import json, sys\n"
        "from transformers import pipeline\n"
        f"ask = pipeline('text-generation', model={str(tmp_path)!r}, device='cpu')\n"
        f"answer = ask({prompt!r}, max_new_tokens=12, do_sample=False)[0]['generated_text'][-1]\n"
        "assert not [name for name in sys.modules if name.startswith('moxin_lab')]\n"
        "print(json.dumps(answer))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from moxin_lab.model.generate import generate

    ids = prompts.encode_prompt(prompt, TOKENIZER)
    made = generate(
        model, torch.tensor([ids]), max_new_tokens=12, eos_token_id=TOKENIZER.eos_token_id
    )[0, len(ids) :]
    ours = TOKENIZER.decode(made, skip_special_tokens=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"role": "assistant", "content": ours}


def test_the_schedule_is_transformers_linear_one():
    from transformers import get_linear_schedule_with_warmup

    for total, ratio in ((100, 0.03), (37, 0.1), (10, 0.0)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_linear_schedule_with_warmup(optimizer, int(total * ratio), total)
        for step in range(total):
            assert schedules.linear(step, total, ratio) == pytest.approx(
                optimizer.param_groups[0]["lr"], abs=1e-12
            )
            optimizer.step()
            schedule.step()


def test_every_epoch_reads_each_example_once_in_an_order_of_its_own():
    order = Order(24, examples_per_step=8, epochs=2, seed=3)
    steps = [order.step(step) for step in range(order.num_steps)]
    assert sorted(np.concatenate(steps[:3])) == sorted(np.concatenate(steps[3:])) == list(range(24))
    assert not np.array_equal(np.concatenate(steps[:3]), np.concatenate(steps[3:]))
    assert np.array_equal(
        np.concatenate([order.part(1, part, 4) for part in range(4)]), order.step(1)
    )
    assert Order(25, examples_per_step=8, epochs=1, seed=0).left_over == 1


def test_rows_hold_each_sequence_once_and_padding_has_no_label():
    encoded = encode()
    batch = lay_out(encoded, row_tokens=128, layout="packed", pad_id=0)
    assert batch["input_ids"].shape[1] <= 128
    padding = batch["document_ids"] == -1
    assert (batch["labels"][padding] == IGNORE_INDEX).all() and (
        batch["input_ids"][padding] == 0
    ).all()
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == sum(
        sequence.num_targets for sequence in encoded
    )
    used = rows_used(encoded, row_tokens=128, layout="packed")
    assert used["padding"] == pytest.approx(padding.float().mean().item())
    assert used["padding"] < rows_used(encoded, row_tokens=128, layout="padded")["padding"]


def test_sizes_that_do_not_fit_are_refused_before_training():
    encoded = encode()
    with pytest.raises(ValueError, match="more than the 20 of a row: raise the context"):
        make_stream(encoded, row_tokens=20).batch(0)
    with pytest.raises(ValueError, match=r"3 examples in 1 epoch.* do not fill one step of 8"):
        make_stream(encoded[:3], epochs=1)
    with pytest.raises(
        ValueError,
        match="a step of 8 examples is not a multiple of micro_batch_examples x ranks = 6",
    ):
        fit.accumulation(make_stream(encoded), make_settings(micro_batch_examples=3), 2)
    with pytest.raises(ValueError, match="does not divide into 3 parts"):
        make_stream(encoded).batch(0, 0, 3)
    with pytest.raises(ValueError, match="unknown reduction 'average': available are mean, sum"):
        make_stream(encoded, reduction="average")


def test_a_gradient_that_is_not_finite_stops_the_training_and_names_what_was_read(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(
        ArithmeticError,
        match=r"gradients of 3 steps in a row.*norm nan.*: lower the learning rate.*conversations",
    ):
        train(tmp_path, model)
