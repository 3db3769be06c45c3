"""Functions that the task files in `tasks/` name: examples for prompts, and how answers are judged.

A filter turns what the model wrote into a verdict with its reason, which the harness keeps in the
samples as `filtered_resps`; `passed` then reads the verdict. So that a sample shows why an answer
counted or not.

Out of scope: prompts and metrics, which the task files state.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._yaml_loader import load_yaml

from moxin_lab.evaluation import sandbox
from moxin_lab.verifier.verifier import Verifier

Docs = Sequence[dict[str, Any]]
Responses = Sequence[Sequence[str]]
"""For each item, what the model wrote in each of its repeats."""


def gsm8k_examples() -> list[dict[str, str]]:
    """The eight worked examples of lm-eval's `gsm8k_cot` (Wei et al., 2022, table 20), read from
    the installed harness.
    """
    path = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k-cot.yaml"
    config = load_yaml(path, resolve_func=False)
    return [
        {"question": " ".join(each["question"].split()), "answer": " ".join(each["target"].split())}
        for each in config["fewshot_config"]["samples"]
    ]


def run_programs(responses: Responses, docs: Docs) -> list[list[str]]:
    """HumanEval: each completion with its prompt and test, run in the sandbox; the verdicts as
    `passed` or `failed: reason` or `contained: reason`.
    """
    programs = [
        f"{doc['prompt']}{text}\n{doc['test']}\ncheck({doc['entry_point']})\n"
        for texts, doc in zip(responses, docs, strict=True)
        for text in texts
    ]
    verdicts = iter(sandbox.run_all(programs))
    return [[_in_words(*next(verdicts)) for _ in texts] for texts in responses]


def judge_answers(responses: Responses, docs: Docs) -> list[list[str]]:
    """Mathematics: the final answer of each text beside the gold answer, by `moxin_lab.verifier`;
    the verdicts as `passed` or `failed: reason (answer)`.
    """
    texts = [text for each in responses for text in each]
    golds = [doc["answer"] for each, doc in zip(responses, docs, strict=True) for _ in each]
    with Verifier() as verifier:
        verdicts = iter(verifier.verify_batch(texts, golds))
    judged = []
    for each in responses:
        words = []
        for _ in each:
            verdict = next(verdicts)
            reason = f"{verdict.reason} ({verdict.answer})" if verdict.answer else verdict.reason
            words.append("passed" if verdict.correct else f"failed: {reason}")
        judged.append(words)
    return judged


def passed(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`pass@1` of one item: the share of its repeats that passed."""
    verdicts = _flat(results)
    return {"pass@1": sum(each == "passed" for each in verdicts) / len(verdicts)}


def rouge_of_summary(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`rougeLsum` of one summary, the F-measure between 0 and 1 with stemming, sentences on lines
    of their own (Lin, 2004; the package rouge-score, which BIG-bench uses too).
    """
    from rouge_score import rouge_scorer

    gold, written = (_sentences_on_lines(text) for text in (doc["summary"], results[0]))
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=True)
    return {"rougeLsum": scorer.score(gold, written)["rougeLsum"].fmeasure}


def _sentences_on_lines(text: str) -> str:
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def _flat(results: Sequence[Any]) -> list[str]:
    return [text for each in results for text in (each if isinstance(each, list) else [each])]


def _in_words(verdict: str, reason: str) -> str:
    return f"{verdict}: {reason}" if reason else verdict
