"""The vision-language model: two vision encoders (towers), a projector, and the decoder of stage
04, 05 or 06.

    pixel_values -> Towers -> [B, patches, 2176] -> Projector -> [B, patches, 4096]
                                                                   |
    input_ids   <s> In: ...  -> embed_tokens ->  <s> | patches | In: ... -> 36 blocks -> logits
    labels     -100 -100 ... answer             -100   -100     -100 ... answer

Guarantees: patches come right after the first token (bos); only labelled text carries loss; a row
of a batch, with or without image, padded on the left or right, gets the same result as alone;
cached generation equals uncached.
Out of scope: tokenising (`prompts.py`), opening images (`images.py`), training (`vlm_training.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import is_end, sample
from moxin_lab.training.loss import IGNORE_INDEX
from moxin_lab.vision.towers import Towers

PixelValues = Mapping[str, Tensor]
"""Name of the tower to normalised pixels float32 [images, 3, S, S]."""


class Projector(nn.Module):
    """Prismatic's `fused-gelu-mlp`: Linear(v, 4v), GELU, Linear(4v, d), GELU, Linear(d, d); the
    widths are 2176, 8704, 4096, 4096 at full scale.

    The paper says two layers; Prismatic's code for fused towers has three.
    """

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, patches, hidden_size] of features [B, patches, channels]."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))

    @torch.no_grad()
    def standardise(self, features: Tensor, rms: float) -> None:
        """Rescale fresh weights, in place, to the given features [N, patches, channels].

        Afterwards every channel of each layer's output has mean 0 and standard deviation 1 on
        `features`, and `rms` after the last layer: that of token embeddings, so that patches have
        the size of tokens from the first step.

        This is layer-sequential initialisation (Mishkin and Matas 2016, arXiv 1511.06422), by
        channel and with the mean. Most of a feature vector is the same for every image (nine tenths
        of its length in our tiny DINO tower), and the language model would see little else at
        first. The projector remains three linear layers with GELU.
        """
        channels = features.flatten(0, 1).float()  # [N * patches, channels]
        mean, scale = channels.mean(dim=0), channels.std(dim=0).clamp_min(1e-3)
        self.fc1.weight /= scale
        self.fc1.bias -= self.fc1.weight @ mean
        inputs = features.float()
        for layer in (self.fc1, self.fc2, self.fc3):
            outputs = layer(inputs).flatten(0, 1)  # [N * patches, width of the layer]
            spread = outputs.std(dim=0).clamp_min(1e-6)
            layer.weight /= spread[:, None]
            layer.bias.copy_((layer.bias - outputs.mean(dim=0)) / spread)
            inputs = F.gelu(layer(inputs))
        self.fc3.weight *= rms
        self.fc3.bias *= rms


class Output(NamedTuple):
    """Losses where labels were given, logits otherwise."""

    loss: Tensor | None
    """Mean over all labelled tokens in nats."""
    nats: Tensor | None
    """Loss of each labelled token, [labelled tokens], row by row."""
    rows: Tensor | None
    """Row of the batch that each labelled token belongs to, int64 [labelled tokens]."""
    logits: Tensor | None
    """[B, T, V] at all positions of the joined sequences."""


class Joined(NamedTuple):
    """One sequence of text and patches per row."""

    embeddings: Tensor
    """[B, T, C]"""
    labels: Tensor | None
    """int64 [B, T]"""
    mask: Tensor
    """bool [B, T]: False on padding."""


def place_patches(
    is_token: Tensor, row_patches: Tensor, *, left: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the parts of each joined row are, each [B, T]: the position in the row's own sequence
    (negative on left padding), whether a token or patch is there, whether it is a patch, and from
    which column of the text it comes otherwise.

    is_token: int64 [B, columns], 1 on tokens. row_patches: int64 [B, 1], patches of each row.
    """
    first = is_token.argmax(dim=1, keepdim=True)  # [B, 1], the column of <s>
    lengths = is_token.sum(dim=1, keepdim=True) + row_patches
    total = int(lengths.max())
    position = torch.arange(total, device=is_token.device)[None]
    position = position - (total - lengths if left else 0)
    is_there = (position >= 0) & (position < lengths)
    is_patch = (position >= 1) & (position <= row_patches)  # right after <s>
    column = first + torch.where(position > row_patches, position - row_patches, position)
    return position, is_there, is_patch, column


class MoxinVLM(nn.Module):
    """`decoder`, `towers`, and a `projector` between them, initialised from `seed` unless given."""

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
    def config(self) -> MoxinConfig:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        """The decoder's device."""
        return self.decoder.lm_head.weight.device

    def image_features(self, pixel_values: PixelValues) -> Tensor:
        """Inputs of the projector, [images, patches, channels]. While the towers are frozen, they
        can be computed once per image.
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
        """One sequence per row: first token, patches if the row has an image, rest of the text,
        padding on the right, or on the left if `left`.

            <s> a b c .       with image       <s> p p p p a b c
            . <s> d e .       without image    <s> d e . . . . .

        input_ids, labels: int64 [B, T]. features: [rows with image, patches, channels], in the
        order of the rows. attention_mask [B, T]: 1 on tokens, which must be contiguous, 0 on
        padding. has_image: bool [B]; default: all rows if there are features. Raises ValueError if
        has_image and features do not agree.
        """
        batch, width = input_ids.shape
        device = input_ids.device
        is_token = (
            torch.ones_like(input_ids)
            if attention_mask is None
            else attention_mask.to(device).long()
        )
        if has_image is None:
            has_image = torch.full((batch,), features is not None, device=device)
        count = int(has_image.sum())
        if count != (0 if features is None else len(features)):
            raise ValueError(
                f"{count} rows have an image and {0 if features is None else len(features)} images "
                "were given; has_image says which rows have one"
            )
        text = self.decoder.model.embed_tokens(input_ids)  # [B, T, C]
        if features is None or not count:
            num_patches, source = 0, text
        else:
            projected = self.projector(features.to(self.projector.fc1.weight.dtype)).to(text.dtype)
            num_patches = projected.shape[1]
            patches = text.new_zeros(batch, num_patches, text.shape[2])
            patches[has_image] = projected
            source = torch.cat((text, patches), dim=1)  # [B, T + patches, C]
        if not bool((is_token.sum(dim=1) > 0).all()):
            raise ValueError("a row has no token at all: each begins with bos")
        row_patches = has_image.long()[:, None] * num_patches  # [B, 1]
        position, mask, is_patch, text_index = place_patches(is_token, row_patches, left=left)
        index = torch.where(is_patch, width + position - 1, text_index)
        index = index.clamp(0, source.shape[1] - 1)  # padding gathers anything
        embeddings = source.gather(1, index[..., None].expand(-1, -1, source.shape[2]))
        joined_labels = None
        if labels is not None:
            joined_labels = labels.gather(1, text_index.clamp(0, width - 1))
            joined_labels = joined_labels.masked_fill(
                is_patch | ~mask | (position == 0), IGNORE_INDEX
            )
        return Joined(embeddings, joined_labels, mask)

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

        pixel_values: tower to [images, 3, S, S]; None with `features` [images, patches, channels],
        or without any image. input_ids, labels: int64 [B, T]; the label of a token is at its own
        index (not shifted), IGNORE_INDEX where there is no loss. Raises ValueError for a row whose
        labels carry no loss.
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
        states = self.decoder.hidden_states_from_embeddings(joined.embeddings)  # [B, T, C]
        if joined.labels is None:
            return Output(None, None, None, self.decoder.lm_head(states))
        targets = joined.labels[:, 1:]  # position t predicts token t + 1
        labelled = targets != IGNORE_INDEX
        unlabelled_rows = torch.nonzero(~labelled.any(dim=1))[:, 0].tolist()
        if unlabelled_rows:
            raise ValueError(
                f"rows {unlabelled_rows[:8]} have no token with loss: there is nothing to learn"
            )
        # Half-precision logits would give different answers equal scores, so only training steps
        # stay under autocast here.
        device = states.device.type
        with torch.autocast(
            device, enabled=torch.is_autocast_enabled(device) and torch.is_grad_enabled()
        ):
            logits = self.decoder.lm_head(  # [labelled tokens, V]
                states[:, :-1][labelled].to(self.decoder.lm_head.weight.dtype)
            )
        nats = F.cross_entropy(logits.float(), targets[labelled], reduction="none")
        return Output(nats.mean(), nats, torch.nonzero(labelled)[:, 0], None)

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
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int = 0,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        on_token: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """New token ids int64 [B, up to max_new_tokens]; after `eos_token_id` a row continues with
        `pad_token_id`.

        on_token: called with each step's ids [B]. temperature: 0 for greedy decoding.
        use_cache: False recomputes the whole sequence for each token, the reference that the cache
        is tested against. Raises ValueError for more tokens than the decoder has positions.
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
                f"{length} tokens and patches plus {max_new_tokens} new tokens are more than the "
                f"{self.config.max_position_embeddings} positions"
            )
        padding = length - joined.mask.sum(dim=1)
        completion: list[Tensor] = []
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=embeddings.device)
        cache, step = None, embeddings
        device_type, dtype = embeddings.device.type, embeddings.dtype
        if torch.is_autocast_enabled(device_type):  # keys are then narrower than embeddings
            dtype = torch.get_autocast_dtype(device_type)
        for index in range(max_new_tokens):
            if cache is None or not use_cache:
                cache = RollingCache(
                    self.config,
                    len(input_ids),
                    padding=padding,
                    dtype=dtype,
                    device=embeddings.device,
                )
            states = self.decoder.hidden_states_from_embeddings(step, cache=cache)
            token = sample(  # [B]
                self.decoder.lm_head(states[:, -1]),
                temperature=temperature,
                top_p=top_p,
                generator=generator,
            )
            token = torch.where(ended, pad_token_id, token)
            completion.append(token)
            if on_token is not None:
                on_token(token)
            if eos_token_id is not None:
                ended |= is_end(token, eos_token_id)
            if bool(ended.all()) or index == max_new_tokens - 1:
                break
            new = self.decoder.model.embed_tokens(token[:, None])
            step = new if use_cache else torch.cat((step, new), dim=1)
        return torch.stack(completion, dim=1)

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
        """log P(answer | image, prompt) in nats, of each answer of each prompt: the sum over its
        tokens.

        prompts: ids with bos (`prompts.encode_prompt`). answers: ids that end with eos. Each value
        is the log-probability that the model gives exactly this answer: an answer that is the
        beginning of another is not favoured, and answers of several tokens need no normalisation by
        length. (Prismatic compares first tokens and asserts that each answer has only one.)
        features or pixel_values: one image per prompt, or neither (blind).
        """
        rows = [(i, j) for i, choices in enumerate(answers) for j in range(len(choices))]
        # Longest first, so that the rows of a batch have similar lengths.
        rows.sort(key=lambda row: -len(prompts[row[0]]) - len(answers[row[0]][row[1]]))
        log_likelihoods = [[0.0] * len(choices) for choices in answers]
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
            shown = None if features is None else features[[i for i, _ in chosen]].to(self.device)
            output = self(
                None,
                batch["input_ids"],
                batch["labels"],
                features=shown,
                attention_mask=batch["attention_mask"],
            )
            sums = torch.zeros(len(chosen), dtype=torch.float64, device=self.device)
            sums.index_add_(0, output.rows, -output.nats.double())
            for (i, j), value in zip(chosen, sums.tolist(), strict=True):
                log_likelihoods[i][j] = value
        return log_likelihoods


def pad_examples(
    rows: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
) -> dict[str, Tensor]:
    """`input_ids`, `labels`, `attention_mask`, int64 [B, T], of rows (ids, labels), padded on the
    right: ids with 0, labels with IGNORE_INDEX, the mask with 0.
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
