"""Attention's time against the length of the text, for every back end that runs on this machine.

Guarantees: one layer of the given shape, one row, forward only; the mask is made before the clock
starts, as the decoder makes it once for all blocks; times are medians of up to `repeats` calls. A
back end that cannot run is returned with its reason. Does not: tune anything, or compare machines.
"""

import statistics
import time
import warnings

import numpy as np
import pandas as pd
import torch

from moxin_lab.model.attention import BACKENDS, AttentionMask, attention, backend_refusal
from moxin_lab.model.config import MoxinConfig

ENOUGH_SECONDS = 0.5  # a slow call is not repeated beyond this


def pairs(tokens: int, sliding_window: int | None) -> int:
    """(query, key) pairs that a causal mask with this window allows."""
    window = min(tokens, sliding_window or tokens)
    return tokens * window - window * (window - 1) // 2


@torch.inference_mode()
def attention_times(
    config: MoxinConfig, lengths: list[int], *, device: str = "cpu", repeats: int = 5, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Columns: backend, tokens, milliseconds, pairs; and the reasons of the back ends that cannot
    run here, by name.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    reasons: dict[str, str] = {}
    rows = []
    for backend in BACKENDS:
        for length in lengths:
            generator = torch.Generator(device).manual_seed(seed)
            query, key, value = (
                torch.randn(
                    1,
                    heads,
                    length,
                    config.head_dim,
                    generator=generator,
                    device=device,
                    dtype=dtype,
                )
                for heads in (
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.num_key_value_heads,
                )
            )
            reason = backend_refusal(backend, query)
            if reason is not None:
                reasons[backend] = reason
                break
            mask = AttentionMask.build(
                length, sliding_window=config.sliding_window, device=device
            ).prepare(backend)
            taken: list[float] = []
            with warnings.catch_warnings():
                # On the CPU plain FlexAttention is what can be timed; that it holds all scores is
                # said where it is shown.
                warnings.filterwarnings(
                    "ignore", message="flex_attention called without torch.compile"
                )
                while len(taken) < 2 or (len(taken) <= repeats and sum(taken) < ENOUGH_SECONDS):
                    begin = time.perf_counter()
                    attention(query, key, value, mask, backend=backend)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    taken.append(time.perf_counter() - begin)
            middle = statistics.median(taken[1:]) * 1000  # the first call warms up
            rows.append((backend, length, middle, pairs(length, config.sliding_window)))
    return pd.DataFrame(rows, columns=["backend", "tokens", "milliseconds", "pairs"]), reasons


def slopes(times: pd.DataFrame) -> pd.DataFrame:
    """How time grows: the exponent b of tokens^b, fitted over the three longest texts. Columns:
    backend, exponent.
    """
    rows = [
        (backend, _exponent(part.set_index("tokens")["milliseconds"]))
        for backend, part in times.groupby("backend", sort=False)
    ]
    return pd.DataFrame(rows, columns=["backend", "exponent"])


def work_exponent(times: pd.DataFrame) -> float:
    """The same of the window's own work, its pairs: 2 inside the window, towards 1 beyond."""
    return _exponent(times.groupby("tokens")["pairs"].first())


def _exponent(values: pd.Series) -> float:
    """Least squares on logarithms, over the three largest indices."""
    tail = values.sort_index().iloc[-3:]
    return float(
        np.polyfit(np.log(tail.index.to_numpy(dtype=float)), np.log(tail.to_numpy(dtype=float)), 1)[
            0
        ]
    )
