"""Guarantees of moxin_lab.posttraining.sampling: answers alone or in a batch, the exact rule, pairs
of the model's own answers.
"""

import json

import pandas as pd
import pytest
import torch

from moxin_lab.data import tasks
from moxin_lab.model.generate import generate
from moxin_lab.posttraining import prompts as prompt_rules
from moxin_lab.posttraining import sampling
from tests.posttraining.examples import make_conversations, make_model, make_tokenizer

TOKENIZER = make_tokenizer()


def exact(answer):
    return json.dumps({"kind": "exact", "answer": answer})


def test_a_greedy_answer_is_the_same_in_any_batch_and_is_the_models_own():
    model = make_model()
    prompts = [conversation[:-1] for conversation in make_conversations(7)]
    together = sampling.respond(model, TOKENIZER, prompts, max_new_tokens=9)
    assert together == sampling.respond(model, TOKENIZER, prompts, max_new_tokens=9, batch_size=1)
    ids = prompt_rules.encode_prompt(prompts[2], TOKENIZER)
    made = generate(model, torch.tensor([ids]), max_new_tokens=9, eos_token_id=2)[
        0, len(ids) :
    ].tolist()
    assert together[2].num_tokens == len(made)
    assert together[2].text == TOKENIZER.decode(made, skip_special_tokens=True)


def test_an_answer_ends_with_its_end_token_which_is_counted_and_not_shown(monkeypatch):
    made = torch.tensor([[100, 101, 2, 0, 0], [100, 2, 0, 0, 0], [100, 101, 102, 103, 104]])
    monkeypatch.setattr(
        sampling, "generate", lambda model, ids, **options: torch.cat((ids, made), dim=1)
    )
    prompts = [[{"role": "user", "content": "a"}]] * 3
    answers = sampling.respond(make_model(), TOKENIZER, prompts, max_new_tokens=5)
    assert [(answer.num_tokens, answer.ended) for answer in answers] == [
        (3, True),
        (2, True),
        (5, False),
    ]
    assert [answer.text for answer in answers] == [
        TOKENIZER.decode(ids) for ids in ([100, 101], [100], made[2].tolist())
    ]


def test_sampling_is_seeded():
    model = make_model()
    prompts = [[{"role": "user", "content": "a"}]] * 6
    draws = [
        sampling.respond(model, TOKENIZER, prompts, max_new_tokens=6, temperature=1.0, seed=s)
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) > 1


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("42", " 42\n", True),
        ("42", "42.", True),
        ("42", "42。", True),
        ("42", "４２", True),
        ("42", "421", False),
        ("Yes", "yes", False),
        ("有", "没有", False),
        ("1 2", "1 2", True),
        ("1 2", "12", False),
        ("a.", "a", True),
    ],
)
def test_the_exact_rule_is_the_data_cards(gold, answer, right):
    assert sampling.is_right(exact(gold), answer) == tasks.is_right(exact(gold), answer) == right


def test_another_kind_of_verifier_is_refused():
    with pytest.raises(ValueError, match="no verifier of kind 'math'"):
        sampling.is_right(json.dumps({"kind": "math", "answer": "1"}), "1")


def test_majority_is_by_task_and_language():
    rows = (
        [("parity", "en", "odd")] * 2
        + [("parity", "en", "even")] * 3
        + [("parity", "ko", "홀수"), ("larger", "en", "7")]
    )
    train = pd.DataFrame(
        {
            "task": [row[0] for row in rows],
            "language": [row[1] for row in rows],
            "messages": [[{"role": "assistant", "content": row[2]}] for row in rows],
        }
    )
    found = sampling.majority_answers(train)
    assert found == {("parity", "en"): "even", ("parity", "ko"): "홀수", ("larger", "en"): "7"}


def test_on_policy_pairs_hold_a_right_and_a_wrong_answer_of_the_model_to_the_same_prompt(
    monkeypatch,
):
    drawn = iter(["7", "8", "7.", "1", "1", "1", "5", "5", "5", "3", " ", "3"])
    monkeypatch.setattr(
        sampling,
        "respond",
        lambda model, tokenizer, prompts, **options: [
            sampling.Answer(next(drawn), 2, True) for _ in prompts
        ],
    )
    prompt = [{"role": "user", "content": "q"}]
    rows = pd.DataFrame(
        {
            "messages": [
                [*prompt, {"role": "assistant", "content": gold}] for gold in ("7", "2", "5", "3")
            ],
            "verifier": [exact(gold) for gold in ("7", "2", "5", "3")],
        },
        index=[10, 11, 12, 13],
    )
    pairs, counts = sampling.on_policy_pairs(
        None, None, rows, num_generations=3, temperature=1.0, max_new_tokens=4, seed=0
    )
    assert counts == {"all right": 1, "all wrong": 1, "mixed": 2}
    (pair,) = pairs.to_dict(
        "records"
    )  # the wrong answer of row 13 is empty, which no conversation may be
    assert pair["row"] == 10 and pair["construction"] == "on-policy"
    assert (pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) == ("7", "8")
    assert pair["chosen"][:-1] == pair["rejected"][:-1] == prompt
