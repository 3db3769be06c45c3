"""Shared by the benches of generation: models with random weights, ours and transformers', random
text, and the sizes of rollouts.

Guarantees: both models hold the same weights; the text depends on its length alone.
Out of scope: timing.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import MistralForCausalLM

    from moxin_lab.model.cache import KeyValueCache
    from moxin_lab.model.decoder import MoxinForCausalLM


def add_rollout_arguments(
    parser: ArgumentParser, *, prompts: int, prompt_tokens: int, new_tokens: int
) -> None:
    """Sizes of the benches of GRPO, with a bench's own defaults."""
    parser.add_argument(
        "--width", default="small", help="scale of the shape: tiny, small (default) or full"
    )
    parser.add_argument("--prompts", type=int, default=prompts, help=f"at once (default {prompts})")
    # `--samples` is the option's name in the commands of committed files.
    parser.add_argument(
        "--num-generations",
        "--samples",
        type=int,
        default=8,
        help="completions per prompt (default 8)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=prompt_tokens,
        help=f"tokens per prompt (default {prompt_tokens})",
    )
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=new_tokens,
        help=f"tokens per completion (default {new_tokens})",
    )


def make_model(options: Namespace, dtype: torch.dtype) -> MoxinForCausalLM:
    """Our model of scale `options.width` with random weights on `options.device`, in evaluation
    mode.
    """
    import torch

    from moxin_lab import scales
    from moxin_lab.model.config import MoxinConfig
    from moxin_lab.model.decoder import MoxinForCausalLM

    scale = scales.load(options.width)
    config = MoxinConfig(vocab_size=scale.tokenizer.vocab_size, **scale.model.model_dump())
    with torch.device("meta"):
        model = MoxinForCausalLM(config).to(dtype)
    model = model.to_empty(device=options.device)
    model.init_weights(torch.Generator(options.device).manual_seed(0))
    return model.eval()


def make_peer(model: MoxinForCausalLM, attention: str = "sdpa") -> MistralForCausalLM:
    """transformers' `MistralForCausalLM` that shares the weights of `model`."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    with torch.device("meta"):
        peer = MistralForCausalLM(
            MistralConfig(**model.config.to_hf_dict(), attn_implementation=attention)
        )
    peer.load_state_dict(model.state_dict(), strict=True, assign=True)
    # The buffer of the rotary embedding is not in the state dict, so it is built again off the meta
    # device.
    with model.lm_head.weight.device:
        peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)
    return peer.eval()


def random_text(model: MoxinForCausalLM, batch: int, length: int) -> Tensor:
    """Token ids int64 [batch, length], uniform over the vocabulary."""
    import torch

    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(length)
    return torch.randint(
        model.config.vocab_size, (batch, length), device=device, generator=generator
    )


def prefill(model: MoxinForCausalLM, ids: Tensor, cache: KeyValueCache, chunk: int) -> Tensor:
    """Read ids [B, T] into `cache`, `chunk` tokens at a time; returns the logits [B, 1, V] of the
    last token.
    """
    for part in ids.split(chunk, dim=1):
        logits = model(part, cache=cache, logits_to_keep=1)
    return logits


def weight_bytes(model: MoxinForCausalLM) -> int:
    """Bytes that one decoding step must read: all weights but the embedding, of which it reads one
    row per token.
    """
    return sum(p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name)
