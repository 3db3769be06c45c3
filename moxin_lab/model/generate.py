"""Text generation with the rolling cache: greedy, temperature and top-p sampling, in batches, as a
stream.

On a GPU the tokens after the prompt run on the decoding kernels in a CUDA graph (decode.py) if
these support the model; otherwise, and on the CPU, they run through the model itself.

Guarantees: greedy output equals that of transformers' `generate` on the same checkpoint; a row of a
padded batch gets the same tokens as it would alone; memory does not grow with the number of tokens
beyond the window.
Out of scope: beam search and repetition penalties, also where a model's folder asks for them
(`generation_config.check` refuses it); tokenisation.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moxin_lab.model import decode, generation_config
from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM


def sample(
    logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Sample token ids [B] from logits [B, V].

    Temperature 0 selects the largest logit. top-p (Holtzman et al. 2020, arXiv 1904.09751) samples
    from the smallest set of tokens whose probabilities sum to at least `top_p`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    if top_p < 1:
        ordered, ids = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # sum of all more probable tokens
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, ids, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


@torch.inference_mode()
def stream(
    model: MoxinForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    prefill_chunk: int = 4096,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields token ids int64 [B], one step at a time, until every row has produced `eos_token_id`
    (or one of several) or `max_new_tokens` tokens are generated.

    input_ids: int64 [B, T], padded on the left; attention_mask [B, T] is 0 on the padding. A row
    that has ended yields `pad_token_id`. prefill_chunk: number of prompt tokens per forward pass.
    Raises ValueError for settings or lengths out of range, before any work.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}, not [B, T] with at least one token"
        )
    if max_new_tokens < 1 or prefill_chunk < 1:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} and prefill_chunk {prefill_chunk} must be at least 1"
        )
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature} must be at least 0, top_p {top_p} above 0 and at most 1"
        )
    batch, length = input_ids.shape
    limit = model.config.max_position_embeddings
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{length} tokens of prompt and {max_new_tokens} new ones are more than the {limit} "
            "positions"
        )
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= model.config.vocab_size:
        raise ValueError(
            f"input_ids has ids from {lowest} to {highest}, and the model's vocabulary has "
            f"{model.config.vocab_size}: use the tokenizer of this model"
        )
    padding = None if attention_mask is None else _left_padding(attention_mask, input_ids)
    cache = RollingCache(
        model.config,
        batch,
        padding=padding,
        dtype=model.lm_head.weight.dtype,
        device=model.lm_head.weight.device,
    )
    for chunk in input_ids.split(prefill_chunk, dim=1):
        logits = model(chunk, cache=cache, logits_to_keep=1)

    def plain_step(token: Tensor) -> Tensor:
        return model(token[:, None], cache=cache)[:, -1]

    next_logits: Callable[[Tensor], Tensor] = plain_step  # int64 [B] -> [B, V]
    device = cache.keys.device
    if device.type == "cuda" and decode.unsupported_reason(model, device) is None:
        next_logits = decode.DecodeStep(model, cache)
    logits = logits[:, -1]  # [B, 1, V] -> [B, V]
    ended = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
    for step in range(max_new_tokens):
        token = sample(logits, temperature=temperature, top_p=top_p, generator=generator)
        token = torch.where(ended, pad_token_id, token)
        yield token
        if eos_token_id is not None:
            ended |= is_end(token, eos_token_id)
            if bool(ended.all()):
                return
        if step < max_new_tokens - 1:
            logits = next_logits(token)


def generate(
    model: MoxinForCausalLM, input_ids: Tensor, *, max_new_tokens: int, **options: Any
) -> Tensor:
    """input_ids followed by all tokens of `stream`, int64 [B, T + new]. Options are those of
    `stream`.
    """
    tokens = list(stream(model, input_ids, max_new_tokens=max_new_tokens, **options))
    return torch.cat((input_ids, torch.stack(tokens, dim=1)), dim=1)


def end_ids(model: MoxinForCausalLM, tokenizer: Any, folder: Path | None = None) -> frozenset[int]:
    """Every token that ends a text: by the model's configuration, the tokenizer and, with the
    model's folder, its generation_config.json. Raises LabError for such a file that is no JSON
    object.
    """
    named: list[Any] = [tokenizer.eos_token_id, model.config.eos_token_id]
    named.append(generation_config.read(folder).get("eos_token_id"))
    ends: set[int] = set()
    for value in named:
        ends.update(value if isinstance(value, list | tuple) else [value])
    return frozenset(end for end in ends if isinstance(end, int))


def is_end(tokens: Tensor, eos_token_id: int | Sequence[int]) -> Tensor:
    """Which tokens end a text: bool, in the shape of `tokens`. eos_token_id: one id or several."""
    return torch.isin(tokens, torch.as_tensor(eos_token_id, device=tokens.device))


def _left_padding(attention_mask: Tensor, input_ids: Tensor) -> Tensor:
    """Number of padding tokens at the left of each row, int64 [B]."""
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, "
            f"input_ids {tuple(input_ids.shape)}"
        )
    is_token = attention_mask.long()
    if bool((is_token[:, 1:] < is_token[:, :-1]).any()) or not bool(is_token[:, -1].all()):
        raise ValueError("attention_mask has a 0 after a 1: pad prompts on the left")
    return input_ids.shape[1] - is_token.sum(dim=1)
