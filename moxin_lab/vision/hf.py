"""The VLM as a model of transformers: `from_pretrained`, `generate`, Auto classes.

    from moxin_lab.vision import hf                        # registers the model type `moxin_vl`
    hf.save(vlm, tokenizer, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)

Guarantees: outputs are those of `MoxinVLM`, aligned with the input's tokens; the processor's
float32 pixels serve a model in float32, bfloat16 or float16; prompts with `<image>` placeholders
and prompts without any (prefix mode) give the same result.
Out of scope: running without this package, images anywhere but right after bos.
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
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from moxin_lab.model import convert, hf_config
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.processor import MoxinVLImageProcessor, MoxinVLProcessor
from moxin_lab.vision.towers import build_towers
from moxin_lab.vision.vlm import MoxinVLM


class MoxinVLConfig(PretrainedConfig):
    """language_model: a Mistral `config.json`. towers: the fields of `TowerSettings`.
    image_token_id: of the placeholder `<image>`.
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
        self.towers = dict(towers or TowerSettings().model_dump(mode="json"))
        self.image_token_id = image_token_id
        super().__init__(**kwargs)


class MoxinVLForConditionalGeneration(PreTrainedModel):
    """`vlm` is the `MoxinVLM`; see its `forward` and `generate`."""

    config_class = MoxinVLConfig
    config: MoxinVLConfig
    main_input_name = "input_ids"

    def __init__(self, config: MoxinVLConfig) -> None:
        super().__init__(config)
        towers = TowerSettings.model_validate(config.towers)
        decoder = MoxinForCausalLM(hf_config.from_dict(dict(config.language_model)))
        self.vlm = MoxinVLM(decoder, build_towers(towers))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Does nothing: the parts initialise their own weights, and `from_pretrained` refuses a
        checkpoint that lacks some.
        """

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError for a checkpoint that lacks tensors, where
        transformers only warns.
        """
        return_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            raise ValueError(
                f"{folder} lacks {len(info['missing_keys'])} tensors: "
                f"{sorted(info['missing_keys'])[:4]}"
            )
        return (model, info) if return_info else model

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        has_image: Tensor | None,
        pixel_values: dict[str, Tensor | None],
    ) -> dict[str, Any]:
        """Arguments of `MoxinVLM`, without placeholders: the model inserts the patches itself."""
        pixels = {
            name: values.to(next(self.vlm.towers.tower(name).parameters()).dtype)
            for name, values in pixel_values.items()
            if values is not None
        }
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        placeholders = (input_ids == self.config.image_token_id) & (mask == 1)  # [B, T]
        if placeholders.any():
            counts = self._check_placeholders(placeholders, mask)
            is_text = (mask == 1) & ~placeholders
            rows = [row[keep] for row, keep in zip(input_ids, is_text, strict=True)]
            width = max(map(len, rows))
            input_ids = input_ids.new_zeros(len(rows), width)
            mask = mask.new_zeros(len(rows), width)
            for index, row in enumerate(rows):  # padded on the left
                input_ids[index, width - len(row) :] = row
                mask[index, width - len(row) :] = 1
            has_image = counts > 0
        return {
            "pixel_values": pixels or None,
            "input_ids": input_ids,
            "attention_mask": mask,
            "has_image": has_image,
        }

    def _check_placeholders(self, placeholders: Tensor, mask: Tensor) -> Tensor:
        """Number of placeholders of each row, [B]. Raises ValueError unless each is 0, or one image
        right after bos.
        """
        num_patches = self.vlm.towers.num_patches
        first = mask.argmax(dim=1, keepdim=True)  # [B, 1], the index of bos
        counts = placeholders.sum(dim=1, keepdim=True)
        position = torch.arange(mask.shape[1], device=mask.device)[None] - first  # [B, T]
        expected = (position >= 1) & (position <= counts)
        if not torch.equal(placeholders, expected) or not set(counts[:, 0].tolist()) <= {
            0,
            num_patches,
        }:
            raise ValueError(
                f"an image is {num_patches} placeholders right after bos, and nowhere else"
            )
        return counts[:, 0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        has_image: Tensor | None = None,
        pixel_values_dino: Tensor | None = None,
        pixel_values_siglip: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [B, T, V], aligned with the input: those at a token predict the next one, so
        `logits[:, -1]` are each row's next token where the batch is padded on the left. In prefix
        mode T grows by the patches, which are inserted after bos, and padding stays on its side.
        Train with `vlm_training.train_vlm`. Raises ValueError for an option that is not followed.
        """
        if kwargs.get("labels") is not None:
            raise ValueError(
                "labels are not read here: train with vlm_training.train_vlm, which checks them"
            )
        unknown = [name for name, value in kwargs.items() if value and name != "return_dict"]
        if unknown or kwargs.get("return_dict") is False:
            raise ValueError(
                f"{', '.join(unknown) or 'return_dict=False'}: not followed here; forward returns "
                "logits alone"
            )
        pixels = {"dino": pixel_values_dino, "siglip": pixel_values_siglip}
        inputs = self._inputs(input_ids, attention_mask, has_image, pixels)
        logits = self.vlm(**inputs).logits  # [B, longest row, V], padded on the right
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        width, lengths = input_ids.shape[1], inputs["attention_mask"].sum(dim=1)
        if inputs["pixel_values"] is not None:
            patches = self.vlm.towers.num_patches
            width += 0 if (input_ids == self.config.image_token_id).any() else patches
            shown = inputs["has_image"]
            lengths = lengths + patches * (1 if shown is None else shown.long())
        column = torch.arange(width, device=logits.device)[None]
        first = width - lengths[:, None]  # [B, 1]
        if bool((mask[:, -1] == 0).any()):  # padded on the right
            first = torch.zeros_like(first)
        index = (column - first).clamp(0, logits.shape[1] - 1)  # [B, T]; padding reads anything
        return CausalLMOutput(
            logits=logits.gather(1, index[..., None].expand(-1, -1, logits.shape[2]))
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
        streamer: Any = None,
    ) -> Tensor:
        """input_ids followed by the completion, int64 [B, T + new], as in transformers. Greedy
        unless `do_sample`. streamer: as in transformers; it gets the prompt first.
        """
        if streamer is not None:
            streamer.put(input_ids.cpu())
        pixels = {"dino": pixel_values_dino, "siglip": pixel_values_siglip}
        language = self.vlm.config
        completion = self.vlm.generate(
            **self._inputs(input_ids, attention_mask, has_image, pixels),
            max_new_tokens=max_new_tokens,
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            eos_token_id=language.eos_token_id if eos_token_id is None else eos_token_id,
            pad_token_id=(language.pad_token_id or 0) if pad_token_id is None else pad_token_id,
            on_token=None if streamer is None else lambda token: streamer.put(token.cpu()),
        )
        if streamer is not None:
            streamer.end()
        return torch.cat((input_ids, completion), dim=1)


def save(vlm: MoxinVLM, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write weights, configuration, tokenizer, image processor and chat template into one folder;
    returns it.
    """
    towers = vlm.towers.settings
    image_processor = MoxinVLImageProcessor(towers.image_size, towers.resize, towers.which)
    processor = MoxinVLProcessor(
        image_processor, copy.deepcopy(tokenizer), num_patches=vlm.towers.num_patches
    )
    config = MoxinVLConfig(
        vlm.config.to_hf_dict(), towers.model_dump(mode="json"), processor.image_token_id
    )
    model = MoxinVLForConditionalGeneration(config)
    model.vlm.load_state_dict(vlm.state_dict())
    with convert.without_bars():
        model.to(vlm.decoder.lm_head.weight.dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


AutoConfig.register("moxin_vl", MoxinVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(MoxinVLConfig, MoxinVLForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    MoxinVLConfig, slow_image_processor_class=MoxinVLImageProcessor, exist_ok=True
)
AutoProcessor.register(MoxinVLConfig, MoxinVLProcessor, exist_ok=True)
