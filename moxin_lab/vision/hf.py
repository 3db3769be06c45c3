"""The VLM as transformers has models: `from_pretrained`, `save_pretrained`, `generate`, and Auto
classes that know it.

    from moxin_lab.vision import hf                        # registers the model type `moxin_vl`
    hf.save(vlm, tokenizer, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder); processor = AutoProcessor.from_pretrained(folder)

Guarantees: outputs are those of `MoxinVLM`; `<image>` placeholders and prefix mode give the same.
Does not: run where this package is not installed, or put an image anywhere but behind bos.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.vision.processor import MoxinVLImageProcessor, MoxinVLProcessor
from moxin_lab.vision.settings import TowerSettings
from moxin_lab.vision.towers import build_towers, settings_dict
from moxin_lab.vision.vlm import MoxinVLM


class MoxinVLConfig(PretrainedConfig):
    """language_model: a Mistral `config.json`; towers: `TowerSettings`; image_token_id: the
    placeholder's.
    """

    model_type = "moxin_vl"

    def __init__(
        self,
        language_model: Mapping[str, Any] | None = None,
        towers: Mapping[str, Any] | None = None,
        image_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.language_model = dict(language_model or MoxinConfig().to_hf_dict())
        self.towers = dict(towers or settings_dict(TowerSettings()))
        self.image_token_id = image_token_id
        super().__init__(**kwargs)


class MoxinVLForConditionalGeneration(PreTrainedModel):
    """`vlm` is the `MoxinVLM`; see its `forward` and `generate`."""

    config_class = MoxinVLConfig
    config: MoxinVLConfig
    main_input_name = "input_ids"

    def __init__(self, config: MoxinVLConfig) -> None:
        super().__init__(config)
        towers = TowerSettings(**{**config.towers, "which": tuple(config.towers["which"])})
        decoder = MoxinForCausalLM(MoxinConfig.from_hf_dict(dict(config.language_model)))
        self.vlm = MoxinVLM(decoder, build_towers(towers))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Parts draw their own weights when they are built; a checkpoint that lacks some is refused
        by `from_pretrained` below.
        """

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError for a checkpoint that lacks tensors, which
        transformers only warns of.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            raise ValueError(
                f"{folder} lacks {len(info['missing_keys'])} tensors: {sorted(info['missing_keys'])[:4]}"
            )
        return (model, info) if wants_info else model

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        has_image: Tensor | None,
        pixels: dict[str, Any],
    ) -> dict[str, Any]:
        """Arguments of `MoxinVLM`: placeholders taken out, for the patches go where they stood."""
        found = {
            name.removeprefix("pixel_values_"): values
            for name, values in pixels.items()
            if values is not None
        }
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        placeholders = (input_ids == self.config.image_token_id) & (kept == 1)
        if placeholders.any():
            first = kept.argmax(dim=1, keepdim=True)
            counts = placeholders.sum(dim=1, keepdim=True)
            place = torch.arange(input_ids.shape[1], device=input_ids.device)[None] - first
            wanted = (place >= 1) & (place <= counts)
            if not torch.equal(placeholders, wanted) or not set(counts[:, 0].tolist()) <= {
                0,
                self.vlm.towers.num_patches,
            }:
                raise ValueError(
                    f"an image is {self.vlm.towers.num_patches} placeholders right behind bos, and nowhere else"
                )
            rows = [
                row[real] for row, real in zip(input_ids, (kept == 1) & ~placeholders, strict=True)
            ]
            width = max(map(len, rows))
            compact, mask = input_ids.new_zeros(len(rows), width), kept.new_zeros(len(rows), width)
            for number, row in enumerate(rows):
                compact[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
            input_ids, kept, has_image = compact, mask, counts[:, 0] > 0
        return {
            "pixel_values": found or None,
            "input_ids": input_ids,
            "attention_mask": kept,
            "has_image": has_image,
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
        pixel_values_dino: Tensor | None = None,
        pixel_values_siglip: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V] of each row's joined sequence, from its bos on. Training is
        `vlm_training.train_vlm`'s.
        """
        if kwargs.get("labels") is not None:
            raise ValueError(
                "labels are not read here: train with vlm_training.train_vlm, which checks them"
            )
        pixels = {
            "pixel_values_dino": pixel_values_dino,
            "pixel_values_siglip": pixel_values_siglip,
        }
        return CausalLMOutput(
            logits=self.vlm(**self._inputs(input_ids, attention_mask, has_image, pixels)).logits
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
        pixel_values_dino: Tensor | None = None,
        pixel_values_siglip: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
    ) -> Tensor:
        """input_ids and what follows, [B, T + new], as transformers gives it. Greedy unless
        `do_sample`.
        """
        pixels = {
            "pixel_values_dino": pixel_values_dino,
            "pixel_values_siglip": pixel_values_siglip,
        }
        language = self.config.language_model
        made = self.vlm.generate(
            **self._inputs(input_ids, attention_mask, has_image, pixels),
            max_new_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            eos_token_id=language.get("eos_token_id") if eos_token_id is None else eos_token_id,
            pad_token_id=(language.get("pad_token_id") or 0)
            if pad_token_id is None
            else pad_token_id,
        )
        return torch.cat((input_ids, made), dim=1)


def save(vlm: MoxinVLM, tokenizer: Any, folder: str | Path) -> Path:
    """Weights, configuration, tokenizer, image processor and chat template in one folder; returns
    it.
    """
    settings = settings_dict(vlm.towers.settings)
    images = MoxinVLImageProcessor(settings["image_size"], settings["resize"], settings["which"])
    processor = MoxinVLProcessor(
        images, copy.deepcopy(tokenizer), num_patches=vlm.towers.num_patches
    )
    config = MoxinVLConfig(vlm.config.to_hf_dict(), settings, processor.image_token_id)
    model = MoxinVLForConditionalGeneration(config)
    model.vlm.load_state_dict(vlm.state_dict())
    model.to(vlm.decoder.lm_head.weight.dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


AutoConfig.register("moxin_vl", MoxinVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(MoxinVLConfig, MoxinVLForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    MoxinVLConfig, slow_image_processor_class=MoxinVLImageProcessor, exist_ok=True
)
AutoProcessor.register(MoxinVLConfig, MoxinVLProcessor, exist_ok=True)
