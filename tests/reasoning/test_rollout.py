"""Guarantees of the ring engine: the trainer's log-probabilities, independent rows, ends, budgets,
weight updates.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moxin_lab.reasoning.log_probs import completion_log_probs
from moxin_lab.reasoning.ring_engine import RingEngine, engine_options, rows_that_fit
from moxin_lab.reasoning.rollout import SamplingSettings
from moxin_lab.reasoning.token_step import draw
from tests.posttraining.examples import make_model

EOS, PAD = 2, 0
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [5, 6, 7, 8, 9, 10, 11, 12]]


def make_engine(model=None, **options):
    ends = {"eos_token_id": EOS, "pad_token_id": PAD}
    return RingEngine(model or make_model(), **(ends | options))


def eager_to_end(model, strength=3.0):
    """The same model with a frequent end token, so that rows have different lengths."""
    width = model.config.hidden_size
    with torch.no_grad():
        model.lm_head.weight[EOS] = strength * model.lm_head.weight[3:].mean(dim=0) + 0.05
        model.lm_head.weight[EOS] += 0.4 * torch.randn(
            width, generator=torch.Generator().manual_seed(3)
        )
    return model


def trainers_log_probs(model, rollout, temperature):
    """Of each row by itself, without cache, padding or batch."""
    rows = []
    for row, prompt in enumerate(rollout.prompt_ids):
        tokens = rollout.tokens(row)
        ids = torch.tensor([[*prompt, *tokens]])
        mask = (torch.arange(ids.shape[1] - 1) >= len(prompt) - 1)[None]
        with torch.no_grad():
            rows.append(completion_log_probs(model, ids, mask, temperature)[0][mask])
    return rows


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.8)])
def test_log_probabilities_are_the_trainers(temperature, top_p):
    model = eager_to_end(make_model())
    rollout = make_engine(model).generate(
        PROMPTS, SamplingSettings(6, 20, temperature, top_p), seed=4
    )
    assert {"eos", "length"} == set(rollout.finish_reasons)
    for row, expected in enumerate(trainers_log_probs(model, rollout, temperature)):
        torch.testing.assert_close(
            rollout.log_probs[row, : len(expected)], expected, atol=1e-4, rtol=0
        )


def test_a_prompt_and_an_answer_longer_than_the_window_keep_agreeing():
    model = make_model(sliding_window=6)
    rollout = make_engine(model).generate(PROMPTS, SamplingSettings(3, 17), seed=0)
    for row, expected in enumerate(trainers_log_probs(model, rollout, 1.0)):
        torch.testing.assert_close(
            rollout.log_probs[row, : len(expected)], expected, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    "options", [{"max_rows": 5}, {"max_rows": 1}, {"check_every": 7}, {"prefill_tokens": 4}]
)
def test_a_completion_does_not_depend_on_the_rows_beside_it(options):
    model = eager_to_end(make_model())
    sampling = SamplingSettings(6, 20)
    together, apart = (
        make_engine(model, **o).generate(PROMPTS, sampling, seed=4) for o in ({}, options)
    )
    assert together.finish_reasons == apart.finish_reasons
    assert torch.equal(together.completion_ids, apart.completion_ids)
    torch.testing.assert_close(together.log_probs, apart.log_probs, atol=1e-5, rtol=0)


def test_the_mask_ends_with_the_first_end_token_and_only_padding_follows():
    rollout = make_engine(eager_to_end(make_model())).generate(
        PROMPTS, SamplingSettings(8, 20), seed=1
    )
    for row in range(len(rollout.prompt_ids)):
        length = int(rollout.lengths[row])
        assert rollout.completion_mask[row].tolist() == [True] * length + [False] * (
            rollout.completion_mask.shape[1] - length
        )
        ends = (rollout.completion_ids[row, :length] == EOS).nonzero()[:, 0].tolist()
        assert ends == ([length - 1] if rollout.finish_reasons[row] == "eos" else [])
        assert (rollout.completion_ids[row, length:] == PAD).all() and (
            rollout.log_probs[row, length:] == 0
        ).all()
    assert (
        rollout.prompt_ids[8:16] == [PROMPTS[1]] * 8
    )  # groups are neighbours, in the order of the prompts


def test_a_sampled_pad_token_is_a_token_like_others():
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[PAD] *= 0  # logit 0 among small ones: drawn often
        model.lm_head.weight[3:] *= 0.01
    rollout = make_engine(model).generate(PROMPTS, SamplingSettings(32, 20), seed=1)
    assert bool((rollout.completion_ids[rollout.completion_mask] == PAD).any())


def test_equal_calls_give_equal_bytes_and_seeds_differ():
    engine, sampling = make_engine(), SamplingSettings(4, 12)
    first, again, other = (engine.generate(PROMPTS, sampling, seed) for seed in (0, 0, 1))
    assert torch.equal(first.completion_ids, again.completion_ids) and torch.equal(
        first.log_probs, again.log_probs
    )
    assert not torch.equal(first.completion_ids, other.completion_ids)


def test_buffers_of_a_longer_or_larger_call_do_not_affect_the_next():
    used = make_engine()
    used.generate(PROMPTS, SamplingSettings(8, 30, 0.7), seed=9)
    used.generate(PROMPTS[:1], SamplingSettings(2, 3), seed=9)
    actual, fresh = (
        engine.generate(PROMPTS, SamplingSettings(4, 12), 0) for engine in (used, make_engine())
    )
    assert torch.equal(actual.completion_ids, fresh.completion_ids) and torch.equal(
        actual.log_probs, fresh.log_probs
    )


def test_updated_weights_are_those_that_sample_and_the_trainers_own_are_not_touched():
    model, other = make_model(0), make_model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = make_engine(model)
    engine.update_weights(other.state_dict(), version=7)
    actual, expected = (
        e.generate(PROMPTS, SamplingSettings(4, 12), 0) for e in (engine, make_engine(other))
    )
    assert actual.version == 7
    assert torch.equal(actual.log_probs, expected.log_probs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        engine.update_weights({"lm_head.weight": other.lm_head.weight}, version=8)


def test_any_of_several_end_tokens_ends_a_row_and_nothing_else_changes():
    """Up to its end each row is that of the engine with one end token."""
    sampling = SamplingSettings(6, 20)
    one = make_engine().generate(PROMPTS, sampling, seed=4)
    ends = [EOS, *range(5, 60)]
    several = make_engine(eos_token_id=ends).generate(PROMPTS, sampling, seed=4)
    ended = 0
    for row in range(len(one.prompt_ids)):
        tokens = one.tokens(row)
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        ended += length < len(tokens)
        assert several.tokens(row) == tokens[:length]
        finish = "eos" if tokens[length - 1] in ends else "length"
        assert several.finish_reasons[row] == finish
    assert ended > 0
    with pytest.raises(ValueError, match="eos_token_id is empty"):
        make_engine(eos_token_id=[])


def test_the_engine_samples_from_the_models_distribution():
    """First tokens of 6,000 rows against the softmax, by a chi-square statistic with as many
    degrees of freedom as ids.
    """
    model = make_model(vocab_size=24)
    rollout = make_engine(model, max_rows=6000).generate(
        [[5, 6]], SamplingSettings(6000, 1, 0.8), seed=0
    )
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 6]]))[0, -1] / 0.8).softmax(-1).numpy() * 6000
    seen = np.bincount(rollout.completion_ids[:, 0], minlength=24)
    assert ((seen - expected) ** 2 / expected).sum() < 49.7  # 0.1 % of draws would be above


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    width=st.integers(2, 400),
    seed=st.integers(0, 10_000),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    place=st.sampled_from([0.0, 0.5, 1 - 2**-22]),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
)
@example(width=3, seed=1, top_p=1.0, place=0.0, scale=40.0)
def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_uniform_number(
    width, seed, top_p, place, scale
):
    logits = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * scale
    token, log_prob = draw(logits, torch.full((3,), place), torch.tensor(1.0), top_p)
    exact = logits.double().softmax(-1)
    torch.testing.assert_close(
        log_prob, exact.gather(-1, token[:, None])[:, 0].log().float(), atol=1e-4, rtol=1e-5
    )
    ordered = exact.sort(-1, descending=True).values
    # At 1.0 nothing is cut off, not even what stands behind a sum that has been rounded to 1.
    inside = (ordered.cumsum(-1) - ordered < top_p) | torch.tensor(top_p == 1.0)
    smallest = ordered[inside.sum(-1).sub(1).unsqueeze(-1) == torch.arange(width)]
    assert (
        exact.gather(-1, token[:, None])[:, 0] >= smallest * (1 - 1e-4)
    ).all()  # inside the nucleus
    kept = exact * (exact >= smallest[:, None] * (1 - 1e-9))
    cumulative = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    if top_p == 1.0:
        assert (cumulative.gather(-1, token[:, None])[:, 0] >= place - 1e-5).all()
        assert (
            (cumulative - kept / kept.sum(-1, keepdim=True)).gather(-1, token[:, None])[:, 0]
            <= place + 1e-5
        ).all()


@pytest.mark.parametrize(
    ("prompts", "budget", "message"),
    [
        ([], 4, "no prompts"),
        ([[5], []], 4, "prompt 1 has no token"),
        ([[5] * 10], 510, "more than the 512 positions"),
    ],
)
def test_what_cannot_be_completed_is_refused_before_any_work(prompts, budget, message):
    with pytest.raises(ValueError, match=message):
        make_engine().generate(prompts, SamplingSettings(2, budget), 0)


def test_max_rows_follows_the_memory():
    """An 80 GB GPU with Moxin 7B's ring of 604 MB per row, with a small model's, and with one that
    does not fit.
    """
    assert [rows_that_fit(40 << 30, row) for row in (604 << 20, 19 << 20, 10 << 30, 99 << 30)] == [
        64,
        512,
        4,
        1,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 0}, "num_generations is 0"),
        ({"max_completion_length": 0}, "response budget is 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_sampling_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**{"num_generations": 2, "max_completion_length": 4, **changes})


KERNELS = """
import torch
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning.ring_engine import RingEngine
from moxin_lab.reasoning.rollout import SamplingSettings

config = MoxinConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    head_dim=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    sliding_window=16,
    max_position_embeddings=64,
    initializer_range=0.3,
)
model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0)).eval()
prompts = [[5, 6, 7, 8, 9], [10]]
actual, expected = (
    RingEngine(model, eos_token_id=2, pad_token_id=0, kernels=kernels, graph=False).generate(
        prompts, SamplingSettings(3, 20), 0
    )
    for kernels in (True, False)
)
assert set(expected.finish_reasons) == {"eos", "length"}
assert torch.equal(actual.completion_ids, expected.completion_ids)
torch.testing.assert_close(actual.log_probs, expected.log_probs, atol=1e-4, rtol=0)
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU the kernel itself runs, in the tests below"
)
def test_the_ring_kernel_gives_the_same_completions_in_tritons_interpreter():
    """In a separate process, because the interpreter is chosen when Triton is imported."""
    pytest.importorskip("triton", reason="Triton is not installed on this system")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_graph_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="a CUDA graph needs a GPU and the decoding kernels"):
        make_engine(graph=True)
    with pytest.raises(
        ValueError, match="unknown decoding 'eager': available are graph, kernels, plain"
    ):
        engine_options("eager")


# --------------------------------------------------------------------------------------------------
# on a GPU

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a GPU: a CUDA graph a token; run on the GPU machines",
)
SHAPE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
MANY = SamplingSettings(64, 80)  # 256 rows, which are halved as they end


def gpu_engine(model, decoding="graph", **options):
    chosen = {"dtype": torch.float32, "check_every": 4, **engine_options(decoding), **options}
    return make_engine(model, device="cuda", **chosen)


@needs_gpu
def test_on_a_gpu_the_graph_gives_what_the_kernels_give_without_it():
    model = eager_to_end(make_model(**SHAPE))
    engine = gpu_engine(model)
    graph, eager = (
        made.generate(PROMPTS, MANY, 0) for made in (engine, gpu_engine(model, "kernels"))
    )
    assert len(engine._batches) > 1, "no batch was halved: the case tests less than it says"
    assert torch.equal(graph.completion_ids, eager.completion_ids)
    torch.testing.assert_close(graph.log_probs, eager.log_probs, atol=1e-4, rtol=0)
    plain = gpu_engine(model, "plain").generate(PROMPTS, MANY, 0)
    assert (plain.completion_ids == graph.completion_ids).all(
        dim=1
    ).float().mean() > 0.95  # rounding turns a draw now and then
    for row, expected in enumerate(trainers_log_probs(model, graph, 1.0)):
        torch.testing.assert_close(
            graph.log_probs[row, : len(expected)], expected, atol=1e-3, rtol=0
        )


@needs_gpu
def test_on_a_gpu_captured_graphs_see_updated_weights_new_prompts_and_larger_batches():
    """The second call has other weights, the third more rows than the ring, the fourth a longer
    budget, so graphs are captured again.
    """
    first, second = (eager_to_end(make_model(seed, **SHAPE)) for seed in (0, 1))
    engine = gpu_engine(first)
    engine.generate(PROMPTS[:2], MANY, 0)
    engine.update_weights(second.cuda().state_dict(), version=3)
    fresh = gpu_engine(second, "kernels")
    for prompts, sampling in (
        (PROMPTS[2:], MANY),
        (PROMPTS, MANY),
        (PROMPTS, SamplingSettings(64, 100, 0.7, 0.9)),
    ):
        actual, expected = (each.generate(prompts, sampling, 1) for each in (engine, fresh))
        assert actual.version == 3 and torch.equal(actual.completion_ids, expected.completion_ids)
        torch.testing.assert_close(actual.log_probs, expected.log_probs, atol=1e-4, rtol=0)


@needs_gpu
def test_on_a_gpu_a_deleted_engine_frees_its_memory_and_another_captures():
    model = make_model(**SHAPE)
    for _ in range(3):
        engine = gpu_engine(model, dtype=torch.bfloat16)
        engine.cycle = engine  # as a trainer that has ended holds its parts
        engine.generate(PROMPTS, MANY, 0)
        held = torch.cuda.memory_allocated()
    gpu_engine(model)
    assert torch.cuda.memory_allocated() < held


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs; run on the GPU machines")
def test_an_engine_on_the_second_gpu_samples_what_one_on_the_first_does():
    model = eager_to_end(make_model(**SHAPE)).cuda()
    actual, expected = (
        make_engine(model, device=device, dtype=torch.float32, check_every=4).generate(
            PROMPTS, MANY, 0
        )
        for device in ("cuda:1", "cuda:0")
    )
    assert torch.equal(actual.completion_ids, expected.completion_ids)
