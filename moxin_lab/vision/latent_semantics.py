"""A text encoder that is computed, not trained: latent semantic analysis of the captions
(Deerwester et al. 1990).

    captions of a picture ---- one document: its tokens, each once, weighted by how few documents have it (tf-idf)
    documents [n, vocabulary] = U S V^T         tokens that stand in the same documents get rows of V that are alike
    a text = normalised sum of its tokens' rows, minus the mean document

With some thousand captions a trained text encoder learns by heart which name belongs to which
picture; what an unseen concept shares with the seen ones are tags, and those the factorisation
keeps. Captions of several languages are one document of a picture, so that words with one meaning
come together (cross-language LSA, Landauer and Littman 1990).

Guarantees: no parameters; the same captions and seed give the same encoder. Does not: know the
order of words.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


class LatentSemantics(nn.Module):
    """Token ids int64 [B, T] to [B, output]: places of `pad` and tokens that no document has count
    for nothing.
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
        """documents: token ids of each. The space is turned by a random isometry to `output`
        channels, none of which is then empty. Raises ValueError for more components than documents,
        their tokens or channels have room for.
        """
        super().__init__()
        self._pad = pad
        known, weighted = tf_idf(
            [[token for token in document if token != pad] for document in documents]
        )
        room = min(*weighted.shape, output)
        if components > room:
            raise ValueError(
                f"{components} components of {weighted.shape[0]} documents with {weighted.shape[1]} tokens in {output} "
                f"channels: there is room for {room}; lower text_width"
            )
        factors = np.linalg.svd(weighted, full_matrices=False)[2][:components].T
        turned = factors @ _isometry(components, output, seed)
        rows = weighted @ turned
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        # The weight of a token in a text is that in a document before its length is taken off.
        table = np.zeros((vocabulary, output))
        table[known] = turned * rarity(weighted)[:, None]
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))
        self.register_buffer("mean", torch.tensor(rows.mean(axis=0), dtype=torch.float32))

    def forward(self, ids: Tensor) -> Tensor:
        return (
            F.normalize(
                F.embedding(ids, self.table).mul((ids != self._pad)[..., None]).sum(dim=1), dim=-1
            )
            - self.mean
        )


def tf_idf(documents: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that occur, sorted, and [documents, tokens] of length 1 a row: a token counts
    once, by its rarity.
    """
    known = np.unique(
        np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
    )
    present = np.zeros((len(documents), len(known)))
    for row, document in zip(present, documents, strict=True):
        row[np.searchsorted(known, np.asarray(document, dtype=np.int64))] = 1
    weighted = present * rarity(present)
    return known, weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def rarity(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse document frequency of each column, never 0: a tag that all share says little, but not
    nothing.
    """
    return np.log1p(len(matrix) / (1 + (matrix > 0).sum(axis=0)))


def _isometry(components: int, output: int, seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).standard_normal((output, components))
    return np.linalg.qr(drawn)[0].T
