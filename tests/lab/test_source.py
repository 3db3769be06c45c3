"""Guarantees of what a notebook shows of the package: the code that runs, without its docstring."""

import ast
import inspect
import textwrap

import pytest

from moxin_lab import lab
from moxin_lab.lab import source
from moxin_lab.model import attention, cache, decoder, mask
from moxin_lab.posttraining import batches, dpo
from moxin_lab.tokenizer import learn, router

SHOWN = [
    attention.reference_attention,
    batches.label_weights,
    cache.RollingCache.update,
    decoder.rotate,
    decoder.FeedForward,
    dpo.preference_losses,
    learn.Pool.by_worth,
    mask.AttentionMask.dense.fget,
    router.route,
]


@pytest.mark.parametrize("target", SHOWN, ids=lambda target: target.__qualname__)
def test_the_code_shown_is_the_code_that_runs(target):
    shown = ast.parse(source.source_of(target)).body[0]
    whole = ast.parse(textwrap.dedent(inspect.getsource(target))).body[0]
    assert ast.get_docstring(shown) is None
    if ast.get_docstring(whole) is not None:
        whole.body = whole.body[1:]
    assert ast.dump(shown) == ast.dump(whole)


def test_comments_stay_and_a_function_of_one_docstring_is_shown_whole():
    def documented():
        """Nothing else."""

    def commented():
        """Words."""
        # A reason.
        return 1

    assert "Nothing else" in source.source_of(documented)
    assert "# A reason." in source.source_of(commented)
    assert "Words" not in source.source_of(commented)


def test_a_function_that_is_too_long_for_a_page_is_refused():
    with pytest.raises(ValueError, match="lines, more than the 40"):
        lab.show_source(dpo.encode_pairs)


def test_the_sentence_of_versions_names_the_packages_that_are_there():
    sentence = lab.versions()
    assert sentence.startswith("Python 3.") and "torch 2." in sentence and "None" not in sentence
