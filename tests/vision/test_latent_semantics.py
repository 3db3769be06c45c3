"""`moxin_lab.vision.latent_semantics`: the encoder is the factorisation of tf-idf, and texts that
share tokens are similar.
"""

import numpy as np
import pytest
import torch

from moxin_lab.vision.latent_semantics import LatentSemantics, tf_idf

PAD = 0
# 1 to 4 are animals and 5 to 8 foods; 9 is in every document.
DOCUMENTS = [[1, 2, 9], [2, 3, 9], [1, 3, 9], [3, 4, 9], [5, 6, 9], [6, 7, 9], [5, 7, 9], [7, 8, 9]]


def _encoder(components=3, **options):
    return LatentSemantics(
        DOCUMENTS, vocabulary=12, components=components, output=16, pad=PAD, **options
    )


def _embed(encoder, *texts):
    rows = torch.tensor([[*text, *[PAD] * (6 - len(text))] for text in texts])
    return torch.nn.functional.normalize(encoder(rows), dim=-1)


def test_rare_tokens_weigh_more_and_count_once():
    known, weighted = tf_idf([[2, 5, 5], [2, 7], [2, 7]])
    assert known.tolist() == [2, 5, 7]
    np.testing.assert_allclose(np.linalg.norm(weighted, axis=1), 1)
    np.testing.assert_allclose(weighted[0, 1] / weighted[0, 0], np.log1p(3 / 2) / np.log1p(3 / 4))


def test_with_all_components_similarity_is_that_of_tf_idf():
    documents = [[1, 2, 9], [2, 3, 8], [4, 5]]
    encoder = LatentSemantics(documents, vocabulary=12, components=3, output=16, pad=PAD)
    rows = torch.tensor([[*row, *[PAD] * (6 - len(row))] for row in documents])
    embedded = encoder(rows) + encoder.mean
    weighted = torch.tensor(tf_idf(documents)[1], dtype=torch.float32)
    torch.testing.assert_close(embedded @ embedded.T, weighted @ weighted.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(rows).mean(dim=0), torch.zeros(16), rtol=0, atol=1e-6)


def test_tokens_of_similar_documents_are_similar_without_sharing_a_document():
    encoder = _encoder(components=2)
    animal, other_animal, food = _embed(encoder, [1], [4], [8])
    assert animal @ other_animal > 0.5 > 0 > animal @ food


def test_padding_order_and_unknown_tokens_change_nothing():
    encoder = _encoder()
    one, two, three = _embed(encoder, [1, 5, 9], [9, 5, 1], [9, 11, 5, 1])
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, three)
    assert torch.isfinite(_embed(encoder, [11])).all()


def test_the_seed_only_rotates_the_space():
    one, two = _encoder(seed=0), _encoder(seed=1)
    assert torch.equal(one.table, _encoder(seed=0).table) and not torch.allclose(
        one.table, two.table
    )
    texts = ([1, 2], [3, 9], [5])
    torch.testing.assert_close(
        _embed(one, *texts) @ _embed(one, *texts).T, _embed(two, *texts) @ _embed(two, *texts).T
    )


def test_too_many_components_are_refused():
    with pytest.raises(ValueError, match="room for 8; lower text_width"):
        _encoder(components=9)
