"""The vision-language model: two frozen eyes, a projector, and stage 04's, 05's or 06's decoder.

    pixel_values -> Towers -> [B, patches, 2176] -> Projector -> [B, patches, 4096]
                                                                   |
    input_ids  <s>  In:  ...  -> embed_tokens ->  <s> | patches | In: ...  -> 36 blocks -> logits
    labels      -100 -100 ... answer               -100  -100 ...           answer

Guarantees: patches stand right after the first token (bos); nothing but labelled text has loss; a
row of a batch, with or without image, padded left or right, gets what it gets alone; cached
generation equals uncached (tests/vision/test_vlm.py).
Does not: tokenise (prompts.py), open images (images.py), train (vlm_training.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import sample
from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision.towers import Towers

PixelValues = Mapping[str, Tensor]


class Projector(nn.Module):
    """`fused-gelu-mlp`: Linear(v, 4v) GELU Linear(4v, d) GELU Linear(d, d): 2176, 8704, 4096, 4096
    at full scale.

    The paper says two layers; Prismatic's code for fused towers has three.
    """

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))

    @torch.no_grad()
    def standardise(self, features: Tensor, rms: float) -> None:
        """Rescale fresh weights so that each layer gives `features` [N, patches, channels] mean 0
        and variance 1 a channel, the
        last one `rms`: that of token embeddings, which patches then resemble in size from the first
        step on.

        Layer by layer as Mishkin and Matas 2016 (arXiv 1511.06422), here a channel and with the
        mean. What a tower says alike of every image is most of what it says (nine tenths of the
        length, of our tiny DINO tower), and all that the language model would hear at first. The
        function stays one that the three layers can be.
        """
        channels = features.flatten(0, 1).float()
        mean, scale = channels.mean(dim=0), channels.std(dim=0).clamp_min(1e-3)
        self.fc1.weight /= scale
        self.fc1.bias -= self.fc1.weight @ mean
        inputs = features.float()
        for layer in (self.fc1, self.fc2, self.fc3):
            found = layer(inputs).flatten(0, 1)
            spread = found.std(dim=0).clamp_min(1e-6)
            layer.weight /= spread[:, None]
            layer.bias.copy_((layer.bias - found.mean(dim=0)) / spread)
            inputs = F.gelu(layer(inputs))
        self.fc3.weight *= rms
        self.fc3.bias *= rms


class Output(NamedTuple):
    """loss: mean nats a labelled token; nats: those of each labelled token in row order; rows:
    which row each belongs to. logits [B, T, V] where no labels were given, at the places of
    `input_ids` of each row's joined sequence.
    """

    loss: Tensor | None
    nats: Tensor | None
    rows: Tensor | None
    logits: Tensor | None


class Joined(NamedTuple):
    """Text and patches in one sequence a row: embeddings [B, T, C], labels [B, T] or None, and
    which places are real.
    """

    embeddings: Tensor
    labels: Tensor | None
    mask: Tensor


class MoxinVLM(nn.Module):
    """`decoder`, `towers`, and a projector between them, drawn from `seed` unless given."""

    def __init__(
        self,
        decoder: MoxinForCausalLM,
        towers: Towers,
        projector: nn.Module | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.decoder, self.towers = decoder, towers
        if projector is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                projector = Projector(towers.channels, decoder.config.hidden_size)
        self.projector = projector

    @property
    def config(self) -> Any:
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        return self.decoder.lm_head.weight.device

    def image_features(self, pixel_values: PixelValues) -> Tensor:
        """What the projector reads, [B, patches, channels]; it may be computed once an image while
        the towers are frozen.
        """
        return self.towers.features(pixel_values)

    def join(
        self,
        input_ids: Tensor,
        features: Tensor | None,
        *,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
        left: bool = False,
    ) -> Joined:
        """One sequence a row: first token, patches if the row has an image, rest of the text,
        padding on one side.

        features: [number of rows with image, patches, channels], in the rows' order. attention_mask
        [B, T]: 1 on real tokens, which must be contiguous. has_image bool [B]; default: all rows if
        there are features. Raises ValueError for counts that do not agree.
        """
        batch, width = input_ids.shape
        device = input_ids.device
        kept = (
            torch.ones_like(input_ids)
            if attention_mask is None
            else attention_mask.to(device).long()
        )
        if has_image is None:
            has_image = torch.full((batch,), features is not None, device=device)
        count = int(has_image.sum())
        if count != (0 if features is None else len(features)):
            raise ValueError(
                f"{count} rows have an image and {0 if features is None else len(features)} images were given; has_image says "
                "which rows have one"
            )
        text = self.decoder.model.embed_tokens(input_ids)
        if features is None or not count:
            num_patches, source = 0, text
        else:
            seen = self.projector(features.to(self.projector.fc1.weight.dtype)).to(text.dtype)
            num_patches = seen.shape[1]
            placed = text.new_zeros(batch, num_patches, text.shape[2])
            placed[has_image] = seen
            source = torch.cat((text, placed), dim=1)
        first, real = kept.argmax(dim=1, keepdim=True), kept.sum(dim=1, keepdim=True)
        if not bool((real > 0).all()):
            raise ValueError("a row has no token at all: each begins with bos")
        images = has_image.long()[:, None] * num_patches
        lengths = real + images
        total = int(lengths.max())
        place = torch.arange(total, device=device)[None] - (total - lengths if left else 0)
        mask = (place >= 0) & (place < lengths)
        is_patch = (place >= 1) & (place <= images)
        from_text = first + torch.where(place > images, place - images, place)
        index = torch.where(is_patch, width + place - 1, from_text).clamp(0, source.shape[1] - 1)
        embeddings = source.gather(1, index[..., None].expand(-1, -1, source.shape[2]))
        moved = None
        if labels is not None:
            moved = labels.gather(1, from_text.clamp(0, width - 1))
            moved = moved.masked_fill(is_patch | ~mask | (place == 0), IGNORE_INDEX)
        return Joined(embeddings, moved, mask)

    def forward(
        self,
        pixel_values: PixelValues | None,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> Output:
        """Losses of labelled tokens, or logits without labels.

        pixel_values: tower to [images, 3, S, S], or None with `features` [images, patches,
        channels] or without image.
        input_ids, labels: int64 [B, T]; labels stand at the token itself (not shifted) and are -100
        where no loss is. Raises ValueError for a row with labels none of which carries loss.
        """
        if pixel_values is not None:
            features = self.image_features(pixel_values)
        joined = self.join(
            input_ids,
            features,
            labels=labels,
            attention_mask=attention_mask,
            has_image=has_image,
            left=False,
        )
        states = self.decoder.states_of_embeddings(joined.embeddings)
        if joined.labels is None:
            return Output(None, None, None, self.decoder.lm_head(states))
        targets = joined.labels[:, 1:]
        chosen = targets != IGNORE_INDEX
        without = torch.nonzero(~chosen.any(dim=1))[:, 0].tolist()
        if without:
            raise ValueError(
                f"rows {without[:8]} have no token with loss: they would train nothing"
            )
        # Scored under autocast, logits of half precision would tie; a training step may keep them
        # narrow.
        device = states.device.type
        with torch.autocast(
            device, enabled=torch.is_autocast_enabled(device) and torch.is_grad_enabled()
        ):
            logits = self.decoder.lm_head(
                states[:, :-1][chosen].to(self.decoder.lm_head.weight.dtype)
            )
        nats = F.cross_entropy(logits.float(), targets[chosen], reduction="none")
        return Output(nats.mean(), nats, torch.nonzero(chosen)[:, 0], None)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: PixelValues | None,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        eos_token_id: int | None = None,
        pad_token_id: int = 0,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """New token ids int64 [B, up to max_new_tokens]; a row that has ended goes on with
        `pad_token_id`.

        use_cache False reads everything anew for each token: the reference that the cache is tested
        against. Raises ValueError for more tokens than the decoder has positions.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
        if pixel_values is not None:
            features = self.image_features(pixel_values)
        joined = self.join(
            input_ids, features, attention_mask=attention_mask, has_image=has_image, left=True
        )
        embeddings, length = joined.embeddings, joined.embeddings.shape[1]
        if length + max_new_tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens and patches and {max_new_tokens} new tokens are more than the "
                f"{self.config.max_position_embeddings} positions"
            )
        padding = length - joined.mask.sum(dim=1)
        made: list[Tensor] = []
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=embeddings.device)
        cache, step = None, embeddings
        kind = embeddings.device.type  # under autocast keys are narrower than embeddings
        dtype = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embeddings.dtype
        )
        for number in range(max_new_tokens):
            if cache is None or not use_cache:
                cache = RollingCache(
                    self.config,
                    len(input_ids),
                    padding=padding,
                    dtype=dtype,
                    device=embeddings.device,
                )
            states = self.decoder.states_of_embeddings(step, cache=cache)
            token = sample(
                self.decoder.lm_head(states[:, -1]),
                temperature=temperature,
                top_p=top_p,
                generator=generator,
            )
            token = torch.where(ended, pad_token_id, token)
            made.append(token)
            if eos_token_id is not None:
                ended |= token == eos_token_id
            if bool(ended.all()) or number == max_new_tokens - 1:
                break
            new = self.decoder.model.embed_tokens(token[:, None])
            step = new if use_cache else torch.cat((step, new), dim=1)
        return torch.stack(made, dim=1)

    @torch.no_grad()
    def answer_log_likelihoods(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[Sequence[int]]],
        *,
        features: Tensor | None = None,
        pixel_values: PixelValues | None = None,
        batch_rows: int = 64,
    ) -> list[list[float]]:
        """log P(answer | image, prompt) of each answer of each prompt, in nats: the sum over all
        its tokens.

        prompts: ids with bos (`prompts.encode_prompt`). answers: ids with eos at the end, so that
        an answer which begins another
        is not favoured, and answers of several tokens need no normalisation by length: each is the
        probability that the model says exactly this. Prismatic compares first tokens and asserts
        that they are single; no tokenizer has to here.
        features or pixel_values: one image a prompt, or none at all (blind).
        """
        rows = [(i, j) for i, choices in enumerate(answers) for j in range(len(choices))]
        rows.sort(key=lambda row: -len(prompts[row[0]]) - len(answers[row[0]][row[1]]))
        found = [[0.0] * len(choices) for choices in answers]
        if features is None and pixel_values is not None:
            parts = [
                self.image_features(
                    {
                        name: pixels[start : start + batch_rows]
                        for name, pixels in pixel_values.items()
                    }
                )
                for start in range(0, len(prompts), batch_rows)
            ]
            features = torch.cat(parts)
        for start in range(0, len(rows), batch_rows):
            chosen = rows[start : start + batch_rows]
            batch = pad_examples(
                [
                    (
                        [*prompts[i], *answers[i][j]],
                        [IGNORE_INDEX] * len(prompts[i]) + list(answers[i][j]),
                    )
                    for i, j in chosen
                ]
            )
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            seen = None if features is None else features[[i for i, _ in chosen]].to(self.device)
            output = self(
                None,
                batch["input_ids"],
                batch["labels"],
                features=seen,
                attention_mask=batch["attention_mask"],
            )
            sums = torch.zeros(len(chosen), dtype=torch.float64, device=self.device)
            sums.index_add_(0, output.rows, -output.nats.double())
            for (i, j), value in zip(chosen, sums.tolist(), strict=True):
                found[i][j] = value
        return found


def pad_examples(rows: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `attention_mask`, int64 [B, T], of rows (ids, labels), padded on the
    right with hidden zeros.
    """
    width = max(len(ids) for ids, _ in rows)
    shape = (len(rows), width)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE_INDEX),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for row, (ids, labels) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = torch.as_tensor(ids)
        batch["labels"][row, : len(labels)] = torch.as_tensor(labels)
        batch["attention_mask"][row, : len(ids)] = 1
    return batch
