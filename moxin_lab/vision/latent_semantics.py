"""A text encoder that is computed, not trained: latent semantic analysis of the captions
(Deerwester et al. 1990).

    captions of one picture = one document: its set of tokens, weighted by rarity (tf-idf)
    documents [n, vocabulary] = U S V^T; tokens of the same documents get similar rows of V
    a text = normalised sum of the rows of its tokens, minus the mean document

On a few thousand captions a trained text encoder memorises which name belongs to which picture. An
unseen concept shares only tags with the training concepts, and the factorisation keeps those.
Captions of a picture in several languages are one document, so words of the same meaning get
similar rows (cross-language LSA, Landauer and Littman 1990).

Guarantees: no parameters; the same captions and seed give the same encoder.
Out of scope: the order of words.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


class LatentSemantics(nn.Module):
    """Token ids int64 [B, T] to float32 [B, output]. Padding and tokens that are in no document do
    not contribute.
    """

    table: Tensor
    mean: Tensor

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        *,
        vocabulary: int,
        components: int,
        output: int,
        pad: int,
        seed: int = 0,
    ) -> None:
        """documents: token ids of each. A random isometry rotates the `components` into `output`
        channels, so that no channel is empty. Raises ValueError for more components than the
        smallest of documents, their different tokens and `output`.
        """
        super().__init__()
        self._pad = pad
        known, weighted = tf_idf(
            [[token for token in document if token != pad] for document in documents]
        )
        room = min(*weighted.shape, output)
        if components > room:
            raise ValueError(
                f"{components} components of {weighted.shape[0]} documents with "
                f"{weighted.shape[1]} tokens in {output} channels: there is room for {room}; "
                "lower text_width"
            )
        # [tokens, components]
        factors = np.linalg.svd(weighted, full_matrices=False)[2][:components].T
        rotated = factors @ _isometry(components, output, seed)  # [tokens, output]
        rows = weighted @ rotated  # [documents, output]
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        # A token weighs in a text what it weighs in a document before normalisation.
        table = np.zeros((vocabulary, output))
        table[known] = rotated * inverse_document_frequency(weighted)[:, None]
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))
        self.register_buffer("mean", torch.tensor(rows.mean(axis=0), dtype=torch.float32))

    def forward(self, ids: Tensor) -> Tensor:
        is_text = (ids != self._pad)[..., None]  # [B, T, 1]
        total = F.embedding(ids, self.table).mul(is_text).sum(dim=1)  # [B, output]
        return F.normalize(total, dim=-1) - self.mean


def tf_idf(documents: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that occur, sorted, and the matrix [documents, tokens] with rows of length 1. A
    token counts once per document, weighted by its inverse document frequency.
    """
    known = np.unique(
        np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
    )
    present = np.zeros((len(documents), len(known)))
    for row, document in zip(present, documents, strict=True):
        row[np.searchsorted(known, np.asarray(document, dtype=np.int64))] = 1
    weighted = present * inverse_document_frequency(present)
    return known, weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def inverse_document_frequency(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 + documents / (1 + documents with the token)) of each column of [documents, tokens];
    never 0, so that a tag of all documents keeps a small weight.
    """
    return np.log1p(len(matrix) / (1 + (matrix > 0).sum(axis=0)))


def _isometry(components: int, output: int, seed: int) -> NDArray[np.float64]:
    """A random matrix [components, output] with orthonormal rows."""
    gaussian = np.random.default_rng(seed).standard_normal((output, components))
    return np.linalg.qr(gaussian)[0].T
