"""What the benches of decoding and prefill share: models of random weights, ours and transformers',
and a long text read in.
"""

from typing import Any


def make_model(options: Any, dtype: Any) -> Any:
    """Our model of `options.width` with random weights on `options.device`, in evaluation mode."""
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


def make_peer(model: Any, attention: str = "sdpa") -> Any:
    """transformers' `MistralForCausalLM` on the very same weights."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    with torch.device("meta"):
        peer = MistralForCausalLM(
            MistralConfig(**model.config.to_hf_dict(), attn_implementation=attention)
        )
    peer.load_state_dict(model.state_dict(), strict=True, assign=True)
    with model.lm_head.weight.device:  # its buffer is no weight, so it is made anew
        peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)
    return peer.eval()


def random_text(model: Any, batch: int, length: int) -> Any:
    import torch

    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(length)
    return torch.randint(
        model.config.vocab_size, (batch, length), device=device, generator=generator
    )


def read(model: Any, ids: Any, cache: Any, chunk: int) -> Any:
    """The text through our model into `cache`; logits [B, 1, V] of the last token."""
    for part in ids.split(chunk, dim=1):
        logits = model(part, cache=cache, logits_to_keep=1)
    return logits


def weight_bytes(model: Any) -> int:
    """Bytes that one step must read: all weights but the embedding, of which it reads a row."""
    return sum(p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name)
