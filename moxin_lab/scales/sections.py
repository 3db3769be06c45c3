"""The sections of a scale file, one class per stage: every field, its bounds, and what it means.

Guarantees: unknown keys are refused; values do not change after loading; a section that contradicts
itself is refused with the reason. Imports nothing heavy and knows nothing of any model.
Out of scope: reading files (`moxin_lab.scales.load`).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Section):
    """Stage 01: data curation."""

    sources: tuple[str, ...] = Field(
        min_length=1, description="data cards, or hub sets known to moxin_lab/data/extract.py"
    )
    hub_rows: int | None = Field(gt=0, description="rows read from each hub set; null for all")
    minimum_characters: int = Field(
        ge=0, description="shorter documents are dropped; punctuation and spaces not counted"
    )
    language_share: float = Field(
        gt=0, le=1, description="share of letters that must be in the stated language"
    )
    minhash_permutations: int = Field(gt=0)
    minhash_ngram_size: int = Field(gt=0, description="characters")
    minhash_bands: int = Field(gt=0, le=256)
    minhash_rows: int = Field(gt=0, description="minima a band")
    jaccard_threshold: float = Field(gt=0, le=1)
    heldout_share: float = Field(gt=0, lt=1, description="share of pages held out")
    heldout_bands: int = Field(
        gt=0,
        le=256,
        description="bands of the check of train against held-out, which must miss little",
    )
    heldout_rows: int = Field(gt=0)

    @model_validator(mode="after")
    def bands_fit_the_permutations(self) -> "DataSettings":
        for bands, rows in (
            (self.minhash_bands, self.minhash_rows),
            (self.heldout_bands, self.heldout_rows),
        ):
            if bands * rows > self.minhash_permutations:
                raise ValueError(f"{bands} bands of {rows} rows need {bands * rows} permutations")
        return self


class TokenizerSettings(Section):
    """Stage 02."""

    vocab_size: int = Field(
        gt=512, description="ids in all: special tokens, bytes and every expert's block"
    )
    min_tokens_per_expert: int = Field(
        ge=0, description="floor of an expert's block, as far as its script has tokens"
    )
    min_frequency: int = Field(
        gt=1, description="occurrences in the training text below which a token is not learned"
    )
    max_token_length: int = Field(gt=1, description="characters of the longest token")
    training_bytes_per_language: int = Field(
        gt=0, description="the first documents of each language up to so much text"
    )
    bootstrap_samples: int = Field(gt=0, description="draws of pages for the 95 % intervals")


class ModelSettings(Section):
    """Stage 03: the shape of the decoder, in the names of `MistralConfig`; the vocabulary comes
    from the tokenizer.
    """

    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    rope_theta: float = Field(gt=0)
    sliding_window: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    initializer_range: float = Field(
        gt=0, description="standard deviation of fresh weights, before the scaling by depth"
    )


class Phase(Section):
    """One phase of pretraining."""

    name: str
    steps: int = Field(gt=0, description="optimizer steps")
    sequence_length: int = Field(gt=1, description="tokens a row")
    mixture: dict[str, float] = Field(
        description="share of rows by pool name (language or data set); normalised to one"
    )

    @model_validator(mode="after")
    def shares_are_positive(self) -> "Phase":
        if not self.mixture or any(share <= 0 for share in self.mixture.values()):
            raise ValueError("mixture needs at least one pool and every share above zero")
        return self


class PretrainingSettings(Section):
    """Stage 04."""

    phases: tuple[Phase, ...]
    tokens_per_step: int = Field(
        gt=0,
        description="tokens of one optimizer step over all ranks; rows = this / sequence_length",
    )
    micro_batch_tokens: int = Field(gt=0, description="tokens of one forward pass on one device")
    learning_rate: float = Field(gt=0, description="peak")
    warmup_steps: int = Field(ge=0)
    final_learning_rate_ratio: float = Field(
        ge=0, le=1, description="cosine decays to this share of the peak"
    )
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    weight_decay: float = Field(ge=0)
    gradient_clip_norm: float = Field(gt=0)
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
    checkpoint_every_steps: int = Field(
        gt=0, description="resume points; a killed run loses at most this many steps"
    )
    heldout_bytes_per_language: int = Field(
        gt=0, description="held-out text measured in the notebook, by language"
    )


class Optimisation(Section):
    """What every training behind pretraining has; how the rate goes on after its warm-up is the
    training's own.
    """

    micro_batch_examples: int = Field(gt=0, description="of one forward pass on one device")
    learning_rate: float = Field(gt=0, description="peak")
    warmup_ratio: float = Field(ge=0, lt=1)
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    weight_decay: float = Field(ge=0)
    gradient_clip_norm: float | None = Field(gt=0)
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
    checkpoint_every_steps: int = Field(gt=0)


class Tuning(Optimisation):
    """What both trainings of stage 05 have; the rate falls linearly to zero."""

    epochs: int = Field(gt=0)
    examples_per_step: int = Field(
        gt=0, description="conversations or pairs of one optimizer step over all ranks"
    )
    max_tokens: int = Field(
        gt=1, description="longest conversation; later turns are left out, a pair that is longer is"
    )
    label_smoothing: float = Field(ge=0, lt=1)


class SupervisedSettings(Tuning):
    layout: Literal["packed", "padded"]
    reduction: Literal["mean", "sum", "sequence", "part_mean"] = Field(
        description="see posttraining/batches.py"
    )
    dropout: float = Field(
        ge=0, lt=1, description="of attention and feed-forward, while fine-tuning"
    )


class PreferenceSettings(Tuning):
    loss: Literal["sigmoid", "dpo_norm", "ipo"]
    beta: float = Field(gt=0)
    compared_beta: float = Field(
        gt=0, description="beta of the plain (sigmoid) loss that it is compared with"
    )
    constructed_pairs: int = Field(ge=0, description="pairs taken from the preference set")
    sampled_prompts: int = Field(
        ge=0, description="training prompts with a verifier whose answers are sampled for pairs"
    )
    samples: int = Field(gt=1, description="answers a prompt")
    temperature: float = Field(gt=0)


class ReductionExperiment(Section):
    """How the loss is reduced, against how a step is cut into micro-batches."""

    steps: int = Field(gt=0)
    examples_per_step: int = Field(gt=0)
    micro_batches: tuple[int, ...] = Field(
        min_length=2, description="examples of one forward pass, each a run"
    )
    num_hidden_layers: int = Field(gt=0, description="of the fresh model that each run trains")
    learning_rate: float = Field(gt=0)
    seeds: int = Field(gt=2)


class InstructionTuningSettings(Section):
    """Stage 05: supervised fine-tuning and preference optimisation."""

    source: Literal["cards", "tulu-3"] = Field(
        description="data_cards/ of this repository, or the hub sets Moxin used"
    )
    max_difficulty: int | None = Field(
        description="rows of the cards up to this difficulty; null for all"
    )
    max_refused_share: float = Field(
        ge=0, lt=1, description="conversations that give nothing to learn from, at most"
    )
    train_rows: int | None = Field(
        gt=0, description="rows evenly spread over the training split; null for all"
    )
    test_rows: int = Field(gt=0, description="rows evenly spread over the test split")
    max_new_tokens: int = Field(gt=0, description="longest answer")
    batch_tokens: int = Field(
        gt=0, description="tokens of one forward pass when answers are scored"
    )
    answer_batch: int = Field(gt=0, description="prompts answered at once")
    seeds: int = Field(
        gt=0, description="trainings of the pretrained model, judged on the same rows"
    )
    sft: SupervisedSettings
    dpo: PreferenceSettings
    reduction_experiment: ReductionExperiment


class ReinforcementSettings(Optimisation):
    """GRPO, in the names of `posttraining.grpo_training.GRPOSettings`, which checks the values; the
    rate stays.
    """

    steps: int = Field(gt=0, description="rollouts, each read once")
    prompts_per_step: int = Field(gt=0)
    samples: int = Field(gt=1, description="completions a prompt: the group")
    max_new_tokens: int = Field(gt=0, description="response budget")
    length_stages: tuple[tuple[int, int], ...] = Field(
        description="(from step, response budget); none: one budget"
    )
    temperature: float = Field(gt=0)
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"]
    scale: Literal["group", "batch", "none"] = Field(description="what advantages are divided by")
    baseline: Literal["group", "batch"] = Field(description="mean that rewards are compared with")
    clip_low: float = Field(ge=0)
    clip_high: float = Field(ge=0)
    kl_coefficient: float = Field(ge=0)
    kl_estimator: Literal["k1", "k2", "k3"]
    reward_values: tuple[float, float] = Field(description="of a wrong and of a right answer")
    resample_rounds: int = Field(
        ge=0, description="how often groups without variance are replaced; 0 for not"
    )
    mask_truncated: bool = Field(description="completions cut by the budget carry no loss")


class ArealVariant(Section):
    """PPO without a critic, AReaL's way to train on answers: what takes the place of GRPO's values
    of the same names.
    """

    steps: int = Field(gt=0)
    prompts_per_step: int = Field(gt=0)
    samples: int = Field(gt=1)
    scale: Literal["group", "batch", "none"]
    baseline: Literal["group", "batch"]
    reward_values: tuple[float, float]


class StalenessExperiment(Section):
    """Reward at equal samples when the weights that sample are older than those that learn."""

    levels: tuple[int, ...] = Field(
        min_length=2, description="rollouts between sampling and learning; 0 is synchronous"
    )
    steps: int = Field(gt=0)
    prompts_per_step: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    seeds: int = Field(gt=2)


class ReasoningSettings(Section):
    """Stage 06: chain-of-thought fine-tuning and GRPO. Families and their difficulties are
    reasoning-gym's.
    """

    source: Literal["reasoning-gym", "hub"] = Field(
        description="where training questions come from"
    )
    families: dict[str, dict[str, Any]] = Field(
        description="trained families, at the difficulty of training"
    )
    harder: dict[str, dict[str, Any]] = Field(
        description="trained families, beyond training's difficulty; tests only"
    )
    new_families: dict[str, dict[str, Any]] = Field(
        description="families that training never sees; tests only"
    )
    cot_examples: int | None = Field(gt=0, description="traces; null for all rows of the hub sets")
    problems: int | None = Field(gt=0, description="questions of GRPO; null for all")
    test_items: int = Field(gt=1, description="questions of each of the three test groups")
    max_refused_share: float = Field(
        ge=0, lt=1, description="traces that give nothing to learn from, at most"
    )
    samples: int = Field(gt=0, description="completions a test question")
    pass_at: tuple[int, ...] = Field(min_length=1, description="k of pass@k, at most `samples`")
    answer_rows: int = Field(gt=0, description="completions decoded together")
    decoding: Literal["graph", "kernels", "plain"] = Field(
        description="of rollouts on a GPU: a CUDA graph a token, the same kernels one by one, or PyTorch's attention"
    )
    seeds: int = Field(
        gt=0, description="trainings of the instruct model, judged on the same questions"
    )
    sft: SupervisedSettings
    grpo: ReinforcementSettings
    areal: ArealVariant | None = Field(
        description="a second training from the same start; null: not at this scale"
    )
    staleness_experiment: StalenessExperiment | None = Field(description="null: not at this scale")

    @model_validator(mode="after")
    def groups_stay_apart(self) -> "ReasoningSettings":
        shared = set(self.families) & set(self.new_families)
        if shared:
            raise ValueError(f"{', '.join(sorted(shared))} cannot be trained and be a new family")
        if max(self.pass_at) > self.samples:
            raise ValueError(f"pass@{max(self.pass_at)} needs as many samples, not {self.samples}")
        if self.source == "reasoning-gym" and (
            not self.families or self.cot_examples is None or self.problems is None
        ):
            raise ValueError(
                "generated questions need families, cot_examples and problems: a generator has no end"
            )
        return self


class VisionTowerSettings(Section):
    """The two towers, in the names of `vision.settings.TowerSettings`."""

    image_size: int = Field(gt=0, description="pixels of an edge")
    dino: str = Field(description="timm's name; with no shape, the published tower")
    siglip: str = Field(description="timm's or open_clip's name")
    dino_shape: dict[str, Any] = Field(description="further arguments of timm.create_model")
    siglip_shape: dict[str, Any]
    resize: Literal["naive", "letterbox", "crop"]
    which: tuple[Literal["dino", "siglip"], ...] = Field(min_length=1)


class VisionOptimisation(Optimisation):
    """What every training of stage 07 has; the rate follows a cosine to zero."""

    epochs: int = Field(gt=0)
    examples_per_step: int = Field(gt=1)


class SiglipTrainingSettings(VisionOptimisation):
    """Contrastive pretraining of the SigLIP tower, whose steps are never cut:
    `micro_batch_examples` is `examples_per_step`. Unused where towers are published ones.
    """

    text_encoder: Literal["transformer", "lsa"] = Field(
        description="trained beside the tower, or computed of the captions and locked (latent_semantics.py)",
    )
    text_width: int = Field(gt=0, description="of the transformer; the components of lsa")
    text_layers: int = Field(ge=0, description="not read by lsa")
    text_heads: int = Field(gt=0, description="not read by lsa")
    text_tokens: int = Field(gt=1)
    nameless_captions: bool = Field(
        description="whether half of the captions leave the label out; pays in long trainings"
    )
    token_dropout: float = Field(
        ge=0, lt=1, description="share of a caption's tokens left out, anew a step"
    )
    view_strength: float = Field(
        ge=0,
        description="of the turns, scales, shifts and colours of the tower's views; 0: none of them",
    )


class DinoTrainingSettings(VisionOptimisation):
    """Self-distillation of the DINO tower; unused where towers are published ones."""

    prototypes: int = Field(gt=1)
    teacher_momentum: float = Field(gt=0, lt=1)
    center_momentum: float = Field(gt=0, lt=1)
    student_temperature: float = Field(gt=0)
    teacher_temperature: float = Field(gt=0)
    view_strength: float = Field(
        ge=0, description="as SigLIP's; the two views of a picture differ by it"
    )


class VlmTrainingSettings(VisionOptimisation):
    """One stage of the vision-language model."""

    max_tokens: int = Field(gt=1, description="text tokens of an example; patches come on top")
    activation_checkpointing: str


class VisionSettings(Section):
    """Stage 07: towers, alignment, instruction tuning, tasks."""

    source: Literal["cards", "llava-v1.5"] = Field(
        description="data_cards/ of this repository, or LLaVA's published files"
    )
    checkpoints: dict[str, str] | None = Field(
        description="files of published towers; null: trained here"
    )
    llava: dict[str, str] | None = Field(
        description="LLaVA's two JSON files and the folder of its images, below the root; null with cards"
    )
    backbone: Literal["pretrained", "instruct", "reasoning"] = Field(
        description="language model of stage 04, 05 or 06; the report says base, the released code loads instruct"
    )
    caption_languages: tuple[str, ...] = Field(
        min_length=1,
        description="of the towers' captions, in equal shares; one named twice has two",
    )
    align_languages: tuple[str, ...] = Field(
        min_length=1, description="of the captions that the language model learns"
    )
    train_items: int = Field(gt=0, description="training questions of each task")
    test_items: int = Field(
        gt=1, description="test questions of each task, at most as many as there are"
    )
    max_new_tokens: int = Field(gt=0, description="longest written answer")
    answer_batch: int = Field(gt=0, description="questions answered at once")
    towers: VisionTowerSettings
    siglip: SiglipTrainingSettings
    dino: DinoTrainingSettings
    align: VlmTrainingSettings
    finetune: VlmTrainingSettings
    arms: tuple[str, ...] = Field(
        min_length=1, description="recipes that are trained and compared; see notebook 07"
    )
    seeds: int = Field(gt=0, description="trainings of each arm")
    projector_start: Literal["torch", "standardised"] = Field(
        description="fresh weights as torch draws them, or rescaled to the towers' features (Projector.standardise)"
    )

    @model_validator(mode="after")
    def source_has_its_files(self) -> "VisionSettings":
        if (self.source == "llava-v1.5") != (self.llava is not None):
            raise ValueError("source llava-v1.5 needs the paths of `llava`, and cards need none")
        if self.source == "llava-v1.5" and self.projector_start == "standardised":
            raise ValueError(
                "projector_start standardised needs features of all images beforehand, which llava-v1.5 has not"
            )
        return self

    @model_validator(mode="after")
    def arms_differ(self) -> "VisionSettings":
        if "instruct" in self.arms and self.backbone != "pretrained":
            raise ValueError(
                f"the arm instruct is compared with the base, so it needs backbone pretrained, not {self.backbone}"
            )
        return self


class EvaluationSettings(Section):
    """Stage 08: benchmarks."""

    languages: tuple[str, ...] = Field(
        min_length=1, description="languages of held-out documents that are measured"
    )
    context_tokens: int = Field(
        gt=1, description="most tokens the model reads at once; longer texts go in windows"
    )
    batch_tokens: int = Field(gt=0, description="tokens of one forward pass, padding included")
    heldout_bytes_per_language: int = Field(
        gt=0, description="held-out text scored, documents up to this many bytes"
    )
    heldout_bytes_per_document: int = Field(
        gt=0, description="only the beginning of longer documents is scored"
    )
    cloze_items_per_language: int = Field(gt=3)
    ngram_training_bytes_per_language: int = Field(
        gt=0, description="training text behind the trigram baseline"
    )
    published_tables: tuple[str, ...] = Field(
        description="files of papers/tables (without .csv) to attempt on the hub's weights"
    )
