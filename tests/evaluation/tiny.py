"""A checkpoint for tests of evaluation: a Mistral of three blocks with a window of 16."""

import torch
from transformers import MistralConfig, MistralForCausalLM


def save_mistral(folder, tokenizer, *, bos, eos, pad):
    """Writes random weights, always the same, and the tokenizer. bos, eos, pad: ids."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
