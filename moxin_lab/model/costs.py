"""Time of attention against the length of the text, for every backend that runs on this machine.

Guarantees: one layer of the given shape, one row, forward only; the mask is built before the clock
starts, as the decoder builds it once for all blocks; times are medians of up to `repeats` calls; a
backend that cannot run is returned with its reason.
Out of scope: tuning of backends; comparison of machines.
"""

import statistics
import time
import warnings

import numpy as np
import pandas as pd
import torch

from moxin_lab.model.attention import BACKENDS, attention, backend_unsupported_reason
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.mask import AttentionMask

MAX_SECONDS_PER_POINT = 0.5  # calls are not repeated beyond this total


def count_pairs(tokens: int, sliding_window: int | None) -> int:
    """Number of (query, key) pairs that a causal mask with this window allows."""
    window = min(tokens, sliding_window or tokens)
    return tokens * window - window * (window - 1) // 2


@torch.inference_mode()
def attention_times(
    config: MoxinConfig, lengths: list[int], *, device: str = "cpu", repeats: int = 5, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Time every backend at every length.

    Returns a frame with the columns backend, tokens, milliseconds, pairs, and for each backend that
    cannot run here its reason.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    reasons: dict[str, str] = {}
    rows = []
    for backend in BACKENDS:
        for length in lengths:
            generator = torch.Generator(device).manual_seed(seed)
            kv_heads = config.num_key_value_heads
            query, key, value = (
                torch.randn(
                    (1, heads, length, config.head_dim),
                    generator=generator,
                    device=device,
                    dtype=dtype,
                )
                for heads in (config.num_attention_heads, kv_heads, kv_heads)
            )
            reason = backend_unsupported_reason(backend, query)
            if reason is not None:
                reasons[backend] = reason
                break
            mask = AttentionMask.build(
                length, sliding_window=config.sliding_window, device=device
            ).prepare(backend)
            seconds: list[float] = []
            with warnings.catch_warnings():
                # On the CPU only uncompiled FlexAttention can be timed. Notebook 03 says that it
                # holds all scores.
                warnings.filterwarnings(
                    "ignore", message="flex_attention called without torch.compile"
                )
                while len(seconds) < 2 or (
                    len(seconds) <= repeats and sum(seconds) < MAX_SECONDS_PER_POINT
                ):
                    begin = time.perf_counter()
                    attention(query, key, value, mask, backend=backend)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - begin)
            median = statistics.median(seconds[1:]) * 1000  # the first call warms up
            rows.append((backend, length, median, count_pairs(length, config.sliding_window)))
    return pd.DataFrame(rows, columns=["backend", "tokens", "milliseconds", "pairs"]), reasons


def slopes(times: pd.DataFrame) -> pd.DataFrame:
    """Growth of the time: the exponent b of tokens^b, fitted over the three longest texts.
    Columns: backend, exponent.
    """
    rows = [
        (backend, _exponent(part.set_index("tokens")["milliseconds"]))
        for backend, part in times.groupby("backend", sort=False)
    ]
    return pd.DataFrame(rows, columns=["backend", "exponent"])


def work_exponent(times: pd.DataFrame) -> float:
    """The same exponent for the number of pairs in the window: 2 for texts within the window,
    towards 1 beyond it.
    """
    return _exponent(times.groupby("tokens")["pairs"].first())


def _exponent(values: pd.Series) -> float:
    """Slope of a least-squares line through the logarithms, over the three largest indices."""
    tail = values.sort_index().iloc[-3:]
    x = np.log(tail.index.to_numpy(dtype=float))
    y = np.log(tail.to_numpy(dtype=float))
    return float(np.polyfit(x, y, 1)[0])
