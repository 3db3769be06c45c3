"""Similarities of ALL pairs of documents: the reference for what the search by MinHash finds.

Guarantees: exact for the hashed n-grams, without minima or bands.
Out of scope: large sets. Memory and time grow with the number of pairs that share an n-gram, so
this is for a few thousand documents.
"""

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from moxin_lab.data.minhash import shingles


def similar_pairs(documents: pa.Table, ngram_size: int, threshold: float) -> pa.Table:
    """[a, b, jaccard] of ALL pairs with at least this similarity: the reference for MinHash.

    Computed without minima or bands, as a product of the sparse matrix of documents and shingles
    with its transpose. Memory and time grow with the number of pairs that share a shingle, so this
    is for a few thousand documents.
    """
    ids = documents["id"].to_pylist()
    sets = [shingles(text, ngram_size) for text in documents["text"].to_pylist()]
    sizes = np.array([len(hashes) for hashes in sets], dtype=np.int64)
    columns = np.unique(np.concatenate([np.zeros(0, np.uint64), *sets]), return_inverse=True)[1]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_array(
        (np.ones(len(columns), np.int32), columns, offsets), shape=(len(ids), max(len(columns), 1))
    )
    rows = []
    for start in range(0, len(ids), 256):
        # Number of shared shingles, [rows, documents].
        common = (matrix[start : start + 256] @ matrix.T).tocoo()
        i, j = common.row + start, common.col
        similarity = common.data / (sizes[i] + sizes[j] - common.data)
        for k in np.flatnonzero((similarity >= threshold) & (i != j)):
            if ids[i[k]] < ids[j[k]]:
                rows.append({"a": ids[i[k]], "b": ids[j[k]], "jaccard": float(similarity[k])})
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("jaccard", pa.float64())])
    return pa.Table.from_pylist(rows, schema=schema).sort_by(
        [("a", "ascending"), ("b", "ascending")]
    )


def similar_pairs_by_language(
    documents: pa.Table, ngram_size: int, threshold: float, *, max_documents: int
) -> pa.Table:
    """`similar_pairs` within each language, over its first `max_documents` documents."""
    languages = sorted(set(documents["language"].to_pylist()))
    parts = (
        documents.filter(pa.compute.equal(documents["language"], language)).slice(0, max_documents)
        for language in languages
    )
    return pa.concat_tables(similar_pairs(part, ngram_size, threshold) for part in parts)
