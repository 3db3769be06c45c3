"""Where the corpus of the small scale lies, outside the tree, and what is in it.

Guarantees: nothing is read but its build.json.
Out of scope: building it (`data/corpus.py`).
"""

import os
from pathlib import Path

from moxin_lab.lab.artifacts import read_json, sha256_json

CORPUS = "small_corpus"
"""The source of stage 01 that `moxin-lab corpus build` makes."""


def cache_folder() -> Path:
    """Where the corpus lies: `MOXIN_CORPUS`, or the user's cache folder."""
    if named := os.environ.get("MOXIN_CORPUS"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "moxin-lab" / "corpus"


def corpus_hash() -> str | None:
    """SHA-256 of what the last build names, packages and shards; None without a corpus."""
    path = cache_folder() / "build.json"
    if not path.is_file():
        return None
    built = read_json(path)
    return sha256_json({name: built.get(name) for name in ("packages", "shards")})
