"""MinHash with one permutation: unbiased, the same for every batch, in every script and length."""

import random
import string
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import minhash


@given(st.text(max_size=60))
def test_features_need_one_pass_and_mean_the_recipes_rule(text: str) -> None:
    import re
    import string

    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    assert minhash.features(text) == " ".join(re.split(r"\s+", plain)).strip()


def _codes_of_features(text: str) -> list[int]:
    return [ord(character) for character in minhash.features(text)]


@given(st.text(max_size=60) | st.text(string.printable + "\x1c\x85\u2003ΣİÉ", max_size=30))
def test_codes_are_those_of_the_features(text: str) -> None:
    assert minhash._codes(text).tolist() == _codes_of_features(text)


def test_codes_are_those_of_the_features_for_every_character() -> None:
    for start in range(0, sys.maxunicode + 1, 1024):
        text = "".join(f"{chr(code)}. {chr(code)}X\n" for code in range(start, start + 1024))
        assert minhash._codes(text).tolist() == _codes_of_features(text)
        # The same without the letters that need their context.
        for letter in minhash._BY_CONTEXT:
            text = text.replace(letter, "")
        assert minhash._codes(text).tolist() == _codes_of_features(text)


@given(st.text(max_size=80), st.integers(1, 15))
def test_shingles_are_distinct_sorted_and_as_many_as_their_hashes(text: str, size: int) -> None:
    shingles, plain = minhash.shingles(text, size), minhash.distinct_hashes(text, size)
    assert (np.sort(minhash.mixed(plain)) == shingles).all()
    assert (np.unique(shingles) == shingles).all()


@given(st.lists(st.text("ab 你", max_size=50), max_size=8), st.integers(1, 15))
def test_a_signature_does_not_depend_on_its_batch(texts: list[str], size: int) -> None:
    together = minhash.signatures(texts, 16, size)
    for text, row in zip(texts, together, strict=True):
        assert (minhash.signatures([text], 16, size)[0] == row).all()
        assert minhash.has_features(row[None])[0] == bool(minhash.features(text))


@given(st.text("abcdefgh", min_size=1, max_size=40), st.integers(1, 20))
def test_joined_hashes_equal_the_polynomial_term_by_term(text: str, width: int) -> None:
    codes = minhash._codes(text)
    width = min(width, len(codes))
    expected = []
    for start in range(len(codes) - width + 1):
        value = 0
        for code in codes[start : start + width].tolist():
            value = (value * minhash.BASE + code + 1) % 2**64
        expected.append(value)
    assert minhash.ngram_hashes(codes, width).tolist() == expected


@pytest.mark.parametrize("length", [60, 200, 3000])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_the_share_of_equal_minima_is_the_similarity_short_documents_included(
    length: int, share: float
) -> None:
    """Mean over 150 random pairs, within five standard errors of a binomial."""
    rng = random.Random(length)
    errors = []
    for _ in range(150):
        letters = [rng.choice("abcdefghijklmnop") for _ in range(length)]
        kept = int(length * share)
        other = letters[:kept] + [rng.choice("qrstuvwxyz") for _ in range(length - kept)]
        pair = ["".join(letters), "".join(other)]
        true = minhash.jaccard(*(minhash.shingles(text, 5) for text in pair))
        one, two = minhash.signatures(pair, 128, 5)
        errors.append(float((one == two).mean()) - true)
    assert abs(np.mean(errors)) <= 5 * 0.5 / np.sqrt(128 * 150)


@pytest.mark.parametrize("length", [8, 60, 200, 3000])
@pytest.mark.parametrize("threshold", [0.45, 0.8])
def test_sketches_leave_out_no_similar_pair_and_most_that_are_far_from_it(
    length: int, threshold: float
) -> None:
    rng = random.Random(length)
    kept = {True: [], False: []}
    for _ in range(400):
        letters = [rng.choice("abcdefghijklmnop") for _ in range(length)]
        same = rng.randrange(length + 1)
        other = letters[:same] + [rng.choice("qrstuvwxyz") for _ in range(length - same)]
        pair = ["".join(letters), "".join(other)]
        true = minhash.jaccard(*(minhash.shingles(text, 5) for text in pair))
        one, two = minhash.sketches(minhash.signatures(pair, 128, 5))[:, None]
        may = bool(minhash.may_be_similar(one, two, threshold)[0])
        if true >= threshold or true < threshold / 2:
            kept[true >= threshold].append(may)
    assert kept[True]
    assert all(kept[True])
    if length >= 200:
        assert np.mean(kept[False]) < 0.1
    assert minhash.may_be_similar(one, two, 0.0)[0]


def test_bands_agree_where_their_rows_do_and_only_there() -> None:
    one = np.arange(128, dtype=np.uint32)[None]
    other = one.copy()
    other[0, 13] += 1  # the first row of the second band
    equal = (minhash.band_keys(one, 9, 13) == minhash.band_keys(other, 9, 13))[0]
    assert equal.tolist() == [True, False, *[True] * 7]
    # Equal minima in different bands are different buckets.
    same = np.zeros((1, 128), dtype=np.uint32)
    assert len(set(minhash.band_keys(same, 9, 13)[0].tolist())) == 9


@given(st.lists(st.integers(0, 50)))
def test_distinct_values_are_those_of_unique(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert minhash.distinct(array).tolist() == np.unique(array).tolist()
