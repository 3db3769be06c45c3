"""A small tokenizer, a model, conversations and pairs for the tests of moxin_lab.posttraining."""

import random
from types import SimpleNamespace

import torch

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import chat

WORDS = ["zero", "one", "two", "three", "four", "five", "六", "七", "八", "아홉", "열", "十一"]


def make_tokenizer(template=True):
    """One token per byte, so that any text round-trips, and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
    )  # here, because the two ranks of a test do without it

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: place for place, name in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    return chat.install_template(fast) if template else fast


def say(*contents, system=None):
    """A conversation of these texts, the user's first."""
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": content}
        for place, content in enumerate(contents)
    ]
    return ([{"role": "system", "content": system}] if system else []) + turns


def make_model(seed=0, **changes):
    shape = {
        "vocab_size": 259,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "sliding_window": 256,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return MoxinForCausalLM(
        MoxinConfig(**{**shape, **changes}), generator=torch.Generator().manual_seed(seed)
    ).eval()


def make_conversations(count=24, seed=0):
    """Answers from one word to seven; every third conversation has two turns, every fourth a system
    message.
    """
    draw = random.Random(seed)
    conversations = []
    for number in range(count):
        system = [{"role": "system", "content": "Count."}] if number % 4 == 0 else []
        turns = []
        for _ in range(2 if number % 3 == 0 else 1):
            answer = " ".join(draw.choices(WORDS, k=draw.randint(1, 7)))
            turns += [
                {"role": "user", "content": draw.choice(WORDS)},
                {"role": "assistant", "content": answer},
            ]
        conversations.append(system + turns)
    return conversations


def make_sides(count=16, seed=1):
    """Chosen and rejected conversations of the same prompts, of unequal lengths."""
    draw = random.Random(seed)
    chosen, rejected = [], []
    for number, conversation in enumerate(make_conversations(count, seed)):
        prompt = conversation[:-1]
        sides = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(2)]
        for side, text in zip((chosen, rejected), sides, strict=True):
            side.append(
                [
                    *prompt,
                    {"role": "assistant", "content": f"{text} {number if side is chosen else ''}"},
                ]
            )
    return chosen, rejected


def make_settings(**changes):
    values = {
        "learning_rate": 1e-2,
        "warmup_ratio": 0.1,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_eps": 1e-8,
        "gradient_clip_norm": 1.0,
        "precision": "32-true",
        "micro_batch_examples": 8,
        "checkpoint_every_steps": 2,
    }
    return SimpleNamespace(**{**values, **changes})


def gradient_norm(model):
    return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])).item()
