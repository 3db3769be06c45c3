"""The sections of a scale file, one class per stage: every field, its bounds, and what it means.

Guarantees: unknown keys are refused; values do not change after loading; a section that contradicts
itself is refused with the reason. Imports nothing heavy and knows nothing of any model.
Out of scope: reading files (`moxin_lab.scales.load`).
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSettings(Section):
    """A corpus of your own, see docs/adding-a-corpus.md: a folder of files, or a set on the hub."""

    name: str = Field(
        pattern=r"^[A-Za-z][\w.-]*$", description="`source` of its documents in every table"
    )
    path: str | None = Field(
        default=None, description="folder of .parquet or .jsonl files, relative to the root"
    )
    hub: str | None = Field(default=None, description="owner/name of a hub set")
    files: str | None = Field(
        default=None,
        description="a glob below the folder or the hub set's name, such as 20231101.ja/*.parquet; "
        "null: every file of a folder whose kind is known",
    )
    text: str = Field(description="column of the text")
    page: str | None = Field(
        default=None,
        description="column whose equal values, such as translations, stay on one side of the "
        "split; null: each row is a page",
    )
    language: str = Field(description="language of the text: ISO 639, or code")
    licence: str = Field(min_length=1, description="SPDX identifier, or words")

    @model_validator(mode="after")
    def lies_in_one_place(self) -> "CorpusSettings":
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"corpus {self.name!r}: give either a path or a hub set")
        if self.hub is not None and self.files is None:
            raise ValueError(f"corpus {self.name!r}: name the files of the hub set, a glob")
        return self


class HubSettings(Section):
    """Where the sets and models of the Hugging Face hub lie on this machine."""

    paths: dict[str, str] = Field(
        description="local folder by hub name, absolute or below the repository; a set or model "
        "that is not named is fetched from the hub"
    )


class DataSettings(Section):
    """Stage 01: data curation."""

    sources: tuple[str, ...] = Field(
        min_length=1,
        description="data cards, hub sets known to moxin_lab/data/extract.py, or small_corpus, "
        "which `moxin-lab corpus build` makes",
    )
    benchmark_sources: tuple[str, ...] = Field(
        description="those of the sources that hold questions of benchmarks; they are too short "
        "for the filters of web text, which do not see them"
    )
    corpora: tuple[CorpusSettings, ...] = Field(
        default=(), description="further sources, each one entry"
    )
    hub_files: dict[str, str] = Field(
        default={}, description="files of a hub set, a glob below its name"
    )
    minimum_characters: int = Field(
        ge=0, description="shorter documents are dropped; punctuation and spaces not counted"
    )
    language_share: float = Field(
        gt=0, le=1, description="share of bytes that must be in the stated language"
    )
    minhash_permutations: int = Field(gt=0)
    minhash_ngram_size: int = Field(gt=0, description="characters")
    minhash_bands: int = Field(gt=0, le=256)
    minhash_rows: int = Field(gt=0, description="minima per band")
    jaccard_threshold: float = Field(gt=0, le=1)
    heldout_share: float = Field(gt=0, lt=1, description="share of pages held out")
    heldout_bands: int = Field(
        gt=0,
        le=256,
        description="bands of the check of train against held-out, which must miss little",
    )
    heldout_rows: int = Field(gt=0)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Every source: data cards and hub sets, then the corpora."""
        return (*self.sources, *(corpus.name for corpus in self.corpora))

    @model_validator(mode="after")
    def sources_have_names_of_their_own(self) -> "DataSettings":
        names = (*self.source_names, *({"help_pages", "udhr"} - set(self.sources)))  # always read
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: two sources have this name")
        return self

    @model_validator(mode="after")
    def benchmark_sources_are_sources(self) -> "DataSettings":
        others = sorted(set(self.benchmark_sources) - set(self.sources))
        if others:
            raise ValueError(f"benchmark_sources {', '.join(others)} are not among the sources")
        return self

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
        gt=0, description="of each language, shared among its sources (lab/sampling.py)"
    )
    languages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="languages whose text the vocabulary is learnt from (code is one); null: all "
        "that stage 01 kept",
    )
    validation_one_in: int = Field(
        gt=1, description="one of so many training documents decides the languages' weights instead"
    )
    favoured_languages: tuple[str, ...] = Field(
        description="languages whose saved tokens count more (tokenizer/budget.py)"
    )
    weight_factors: tuple[float, ...] = Field(
        min_length=1, description="by how much, tried on the validation documents"
    )
    english_floor: float = Field(
        gt=0, description="English bytes per token over the joint BPE's, at the least"
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
    sequence_length: int = Field(gt=1, description="tokens per row")
    mixture: dict[str, float] = Field(
        description="percent of the rows by pool, which is a source of stage 01 or a language "
        "(see pretraining/pools.py)"
    )
    benchmark_mixture: dict[str, float] | None = Field(
        default=None,
        description="the mixture with training sets of benchmarks, which takes the place of "
        "`mixture` where benchmark_training_sets is true; its sources are in no other pool",
    )

    @model_validator(mode="after")
    def shares_are_percents(self) -> "Phase":
        for name in ("mixture", "benchmark_mixture"):
            shares = getattr(self, name)
            if shares is None:
                continue
            wrong = {pool: share for pool, share in shares.items() if not 0 < share <= 100}
            if not shares or wrong:
                raise ValueError(
                    f"phase {self.name!r}: {name} needs at least one pool, each above 0 percent"
                    + (f"; it has {wrong}" if wrong else "; it is empty")
                )
            if abs(sum(shares.values()) - 100) > 1e-6:
                raise ValueError(
                    f"phase {self.name!r}: the shares of {name} are percents and must sum to 100; "
                    f"they sum to {sum(shares.values()):g}"
                )
        return self


class ParallelLayout(Section):
    """Stage 04 over `data` x `tensor` ranks (pretraining/parallel.py), which torchrun starts."""

    data: int = Field(gt=0, description="groups of ranks that read different rows, sharded weights")
    tensor: int = Field(default=1, gt=0, description="ranks that split the tensors of one model")
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none", description="what is computed again in the backward pass instead of kept"
    )


class PretrainingSettings(Section):
    """Stage 04."""

    phases: tuple[Phase, Phase, Phase]
    benchmark_training_sets: bool = Field(
        description="phases that have a benchmark_mixture draw from it: the report's phase 3"
    )
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
    spike_sigmas: float | None = Field(
        default=None,
        gt=0,
        description="a step is left out whose gradient norm is so many standard deviations above "
        "the mean of the last 128 steps; null: none is",
    )
    parallel: ParallelLayout | None = Field(
        default=None, description="null: one process, the whole model in it"
    )
    seeds: int = Field(
        default=1,
        gt=0,
        description="trainings, each with its own weights and order of data; the first is kept, "
        "the others say how far apart trainings end",
    )

    @model_validator(mode="after")
    def several_trainings_need_a_model_that_fits_one_device(self) -> "PretrainingSettings":
        if self.parallel is not None and self.seeds > 1:
            raise ValueError(
                f"seeds is {self.seeds}, but `parallel` divides one training among all devices: "
                "state one of the two"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def the_mixture_is_the_one_in_use(cls, values: Any) -> Any:
        phases = values.get("phases") if isinstance(values, dict) else None
        if not (isinstance(phases, list | tuple) and values.get("benchmark_training_sets") is True):
            return values
        mappings = [phase for phase in phases if isinstance(phase, dict)]
        if not any(phase.get("benchmark_mixture") for phase in mappings):
            raise ValueError(
                "benchmark_training_sets is true, but no phase has a benchmark_mixture: state one, "
                "with a source of data.benchmark_sources or data.corpora"
            )
        swapped = [
            {**phase, "mixture": phase["benchmark_mixture"]}
            if isinstance(phase, dict) and phase.get("benchmark_mixture")
            else phase
            for phase in phases
        ]
        return {**values, "phases": swapped}


class Optimisation(Section):
    """What every training after pretraining has; how the rate changes after its warm-up is the
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
        gt=1, description="longest conversation: later turns are omitted, a longer pair as a whole"
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
    """Direct preference optimisation, see posttraining/dpo.py."""

    loss_type: Literal["sigmoid", "dpo_norm", "ipo"]
    beta: float = Field(gt=0)
    compared_beta: float = Field(
        gt=0, description="beta of the plain (sigmoid) loss that it is compared with"
    )
    constructed_pairs: int = Field(ge=0, description="pairs taken from the preference set")
    sampled_prompts: int = Field(
        ge=0, description="training prompts with a verifier whose answers are sampled for pairs"
    )
    num_generations: int = Field(gt=1, description="sampled answers per prompt")
    temperature: float = Field(gt=0)


class ReductionExperiment(Section):
    """How the loss is reduced, against how a step is cut into micro-batches."""

    steps: int = Field(gt=0)
    examples_per_step: int = Field(gt=0)
    micro_batches: tuple[int, ...] = Field(
        min_length=2, description="examples of one forward pass; one run for each value"
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


class RewardSettings(Section):
    """One reward of GRPO (reasoning/rewards.py); a completion is paid the weighted sum of all."""

    name: str = Field(description="registered name, or module:function of an installed package")
    weight: float = Field(default=1.0, allow_inf_nan=False, description="negative for a penalty")
    file: str | None = Field(
        default=None, description="Python file that registers it, relative to the root"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="of the function, by name")


class GRPOSettings(Optimisation):
    """Settings of group-relative policy optimisation (`reasoning.grpo_trainer.train_grpo`).

    Names are those of TRL's GRPOConfig and of verl. The learning rate is constant after warm-up.

    The defaults are Moxin's script (`train_7b.sh`) where it has a value, our choice elsewhere. A
    scale file states every field but those of `EXPERIMENT_FIELDS`.
    """

    steps: int = Field(gt=0, description="rollouts; `updates_per_rollout` optimizer steps each")
    prompts_per_step: int = Field(64, gt=0, description="prompts of one rollout")
    num_generations: int = Field(8, gt=1, description="completions per prompt: the group")
    max_completion_length: int = Field(
        16_384, gt=0, description="response budget in tokens, the end token included"
    )
    length_stages: tuple[tuple[int, int], ...] = Field(
        (),
        description="(first rollout, max_completion_length) pairs that override the single budget, "
        "such as DeepScaleR's 8K, 16K, 24K; empty: one budget",
    )
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    updates_per_rollout: int = Field(
        1, gt=0, description="optimizer steps per rollout; each reads an equal share of it"
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"] = Field(
        "grpo", description="see reasoning/grpo.py; gspo is grpo with sequence-level ratios"
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="one importance ratio per token or per sequence"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="whose standard deviation divides the advantages"
    )
    baseline: Literal["group", "batch"] = Field(
        "group",
        description="whose mean reward is subtracted; batch for both is PPO without a critic",
    )
    epsilon_low: float = Field(0.2, ge=0, le=1, description="ratios are clipped at 1 - epsilon_low")
    epsilon_high: float = Field(0.2, ge=0, description="and at 1 + epsilon_high")
    kl_coef: float = Field(
        0.001, ge=0, allow_inf_nan=False, description="weight of the KL to the start model"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the tokens' mean entropy, subtracted from the loss; 0: no bonus",
    )
    log_kl: bool = Field(
        True, description="measure the KL where kl_coef is 0, too: one forward pass per rollout"
    )
    rewards: tuple[RewardSettings, ...] = Field(
        default=(RewardSettings(name="verified_answer"),),
        min_length=1,
        description="a completion is paid their weighted sum",
    )
    reward_values: tuple[float, float] = Field(
        (0.0, 1.0), description="what a reward of 0 and a reward of 1 become"
    )
    format_pattern: str | None = Field(
        None,
        description="regular expression that a whole completion must match to be paid at all; a "
        "gate, not a bonus: a bonus raises long wrong answers in the right format",
    )
    resample_rounds: int = Field(
        0, ge=0, description="how often groups of equal rewards are replaced (DAPO); 0: never"
    )
    mask_truncated_completions: bool = Field(
        False, description="completions cut by the budget carry no loss"
    )
    staleness: int = Field(0, ge=0, description="rollouts between sampling and learning")
    correction: Literal["none", "naive", "decoupled"] = Field(
        "none",
        description="of stale rollouts. The ratio compares with the weights at the beginning of "
        "the update (none), with those that sampled (naive), or as none, with each token weighted "
        "by the probability at that beginning over the sampler's (decoupled; AReaL, arXiv "
        "2505.24298, section 5.2)",
    )
    behaviour_cap: float = Field(
        5.0, gt=0, description="tokens whose decoupled weight is above it carry no loss"
    )
    learning_rate: float = Field(1e-6, ge=0, description="peak")
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    gradient_clip_norm: float | None = Field(1.0, gt=0)
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "bf16-mixed"
    micro_batch_examples: int = Field(
        8, gt=0, description="completions of one forward pass on one device"
    )
    checkpoint_every_steps: int = Field(20, gt=0)

    @model_validator(mode="after")
    def values_agree(self) -> "GRPOSettings":
        starts = [first for first, _ in self.length_stages]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(
                f"length_stages {self.length_stages} must begin at step 0 and rise: "
                "((0, 8192), (500, 16384))"
            )
        if any(budget < 1 for _, budget in self.length_stages):
            raise ValueError(f"length_stages {self.length_stages} has a budget below one token")
        low, high = self.reward_values
        if not low < high:
            raise ValueError(
                f"reward_values are {self.reward_values}: give the wrong answer's, then the right "
                "one's"
            )
        if self.format_pattern is not None:
            re.compile(self.format_pattern)
        if self.prompts_per_step * self.num_generations % self.updates_per_rollout:
            raise ValueError(
                f"{self.prompts_per_step} prompts x {self.num_generations} generations do not "
                f"divide into {self.updates_per_rollout} equal updates (updates_per_rollout)"
            )
        if self.baseline == "batch" and self.scale_rewards == "group":
            raise ValueError(BATCH_BASELINE_NEEDS_BATCH_SCALE)
        return self


EXPERIMENT_FIELDS = frozenset(
    (
        "top_p",
        "updates_per_rollout",
        "importance_sampling_level",
        "entropy_coef",
        "log_kl",
        "format_pattern",
        "staleness",
        "correction",
        "behaviour_cap",
    )
)
"""Fields of `GRPOSettings` that a scale file may omit: experiments set them."""

BATCH_BASELINE_NEEDS_BATCH_SCALE = (
    "baseline batch with scale_rewards group divides a group's distance from the batch's mean by "
    "the group's own deviation, which is 0 where its rewards are equal: advantages of thousands. "
    "Set scale_rewards to batch or none"
)


class ArealVariant(Section):
    """PPO without a critic, AReaL's way to train on answers: these values replace those of the same
    names in GRPO's section.
    """

    steps: int = Field(gt=0)
    prompts_per_step: int = Field(gt=0)
    num_generations: int = Field(gt=1)
    scale_rewards: Literal["group", "batch", "none"]
    baseline: Literal["group", "batch"]
    reward_values: tuple[float, float]

    @model_validator(mode="after")
    def values_agree(self) -> "ArealVariant":
        if self.baseline == "batch" and self.scale_rewards == "group":
            raise ValueError(BATCH_BASELINE_NEEDS_BATCH_SCALE)
        return self


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
    num_generations_eval: int = Field(gt=0, description="completions per test question")
    pass_at: tuple[int, ...] = Field(
        min_length=1, description="k of pass@k, at most `num_generations_eval`"
    )
    answer_rows: int = Field(gt=0, description="completions decoded together")
    decoding: Literal["graph", "kernels", "plain"] = Field(
        description="of rollouts on a GPU: one CUDA graph per token, the same kernels one by one, "
        "or PyTorch's attention"
    )
    seeds: int = Field(
        gt=0, description="trainings of the instruct model, judged on the same questions"
    )
    sft: SupervisedSettings
    grpo: GRPOSettings
    areal: ArealVariant | None = Field(
        description="a second training from the same start; null: not at this scale"
    )
    staleness_experiment: StalenessExperiment | None = Field(description="null: not at this scale")

    @model_validator(mode="after")
    def groups_stay_apart(self) -> "ReasoningSettings":
        shared = set(self.families) & set(self.new_families)
        if shared:
            raise ValueError(f"{', '.join(sorted(shared))} cannot be trained and be a new family")
        if max(self.pass_at) > self.num_generations_eval:
            raise ValueError(
                f"pass@{max(self.pass_at)} needs as many completions per test question, not "
                f"{self.num_generations_eval} (num_generations_eval)"
            )
        if self.source == "reasoning-gym" and (
            not self.families or self.cot_examples is None or self.problems is None
        ):
            raise ValueError(
                "generated questions need families, cot_examples and problems: "
                "a generator has no end"
            )
        missing = set(GRPOSettings.model_fields) - EXPERIMENT_FIELDS - self.grpo.model_fields_set
        if missing:
            raise ValueError(f"grpo lacks {', '.join(sorted(missing))}: a scale states every field")
        return self


class TowerSettings(Section):
    """The two vision towers, in a scale file and in the configuration of a saved model.

    The defaults are the full scale's, those of Prismatic and Moxin-VLM: `conf/models.py` of
    prismatic-vlms and `prism-moxin-dinosiglip-224px+7b` of Moxin-VLM. A scale file states every
    field. `*_shape` makes a narrow tower of the same class, for example
    `{embed_dim: 96, depth: 6, num_heads: 4, patch_size: 16}`.
    """

    image_size: int = Field(default=224, gt=0, description="edge of the square image in pixels")
    dino: str = Field(
        default="vit_large_patch14_reg4_dinov2.lvd142m",
        description="timm's name; with no shape, the published tower",
    )
    siglip: str = Field(
        default="vit_so400m_patch14_siglip_224", description="timm's or open_clip's name"
    )
    dino_shape: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model"
    )
    siglip_shape: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of timm.create_model"
    )
    resize: Literal["naive", "letterbox", "crop"] = Field(
        default="naive", description="how an image becomes a square; see vision/pixels.py"
    )
    which: tuple[Literal["dino", "siglip"], ...] = Field(
        default=("dino", "siglip"),
        min_length=1,
        description="both, fused by channel, or one alone",
    )


class VisionOptimisation(Optimisation):
    """Settings of every training of stage 07; the learning rate follows a cosine to zero."""

    epochs: int = Field(gt=0)
    examples_per_step: int = Field(gt=1)


class SiglipTrainingSettings(VisionOptimisation):
    """Contrastive pretraining of the SigLIP tower. Unused where the towers are published ones.

    The loss compares every pair of a step, so a step is never cut into micro-batches:
    `micro_batch_examples` equals `examples_per_step`.
    """

    text_encoder: Literal["transformer", "lsa"] = Field(
        description="trained with the tower, or computed from the captions and frozen "
        "(vision/latent_semantics.py)",
    )
    text_width: int = Field(
        gt=0, description="width of the transformer, or number of components of lsa"
    )
    text_layers: int = Field(ge=0, description="not read by lsa")
    text_heads: int = Field(gt=0, description="not read by lsa")
    text_tokens: int = Field(gt=1, description="tokens of a caption; longer ones are cut")
    nameless_captions: bool = Field(
        description="whether half of the captions omit the label; helps in long trainings"
    )
    token_dropout: float = Field(
        ge=0, lt=1, description="share of a caption's tokens replaced by padding, drawn each step"
    )
    view_strength: float = Field(
        ge=0,
        description="strength of rotation, scale, shift and colour change of a view; 0: none",
    )


class DinoTrainingSettings(VisionOptimisation):
    """Self-distillation of the DINO tower; unused where towers are published ones."""

    prototypes: int = Field(gt=1)
    teacher_momentum: float = Field(gt=0, lt=1)
    center_momentum: float = Field(gt=0, lt=1)
    student_temperature: float = Field(gt=0)
    teacher_temperature: float = Field(gt=0)
    view_strength: float = Field(
        ge=0, description="as for SigLIP; the two views of a picture differ by it"
    )


class VlmTrainingSettings(VisionOptimisation):
    """One stage of the vision-language model."""

    max_tokens: int = Field(gt=1, description="text tokens of an example, patches not counted")
    activation_checkpointing: str = Field(description="see model/decoder.py")


class VisionSettings(Section):
    """Stage 07: towers, alignment, instruction tuning, tasks."""

    source: Literal["cards", "llava-v1.5"] = Field(
        description="data_cards/ of this repository, or LLaVA's published files"
    )
    checkpoints: dict[str, str] | None = Field(
        description="files of published towers; null: the towers are trained here"
    )
    llava: dict[str, str] | None = Field(
        description="LLaVA's two JSON files and its image folder, relative to the root; null "
        "with cards"
    )
    backbone: Literal["pretrained", "instruct", "reasoning"] = Field(
        description="language model of stage 04, 05 or 06; the report says base, the released "
        "code loads instruct"
    )
    caption_languages: tuple[str, ...] = Field(
        min_length=1,
        description="languages of the towers' captions in equal shares; one named twice has two "
        "shares",
    )
    align_languages: tuple[str, ...] = Field(
        min_length=1, description="languages of the captions that the projector is aligned on"
    )
    tasks: tuple[
        Literal[
            "caption", "category", "colour", "count", "same", "side", "box", "presence", "chart"
        ],
        ...,
    ] = Field(min_length=1, description="tasks of the questions; see vision/tasks.py")
    train_items: int = Field(gt=0, description="training questions of each task")
    test_items: int = Field(
        gt=1, description="test questions of each task, fewer where a task has fewer"
    )
    max_new_tokens: int = Field(gt=0, description="longest generated answer")
    answer_batch: int = Field(gt=0, description="questions answered at once")
    towers: TowerSettings
    siglip: SiglipTrainingSettings
    dino: DinoTrainingSettings
    align: VlmTrainingSettings
    finetune: VlmTrainingSettings
    arms: tuple[str, ...] = Field(
        min_length=1, description="recipes to train and compare; see vision/recipes.py"
    )
    seeds: int = Field(gt=0, description="trainings of each arm")
    projector_start: Literal["torch", "standardised"] = Field(
        description="fresh weights as torch draws them, or rescaled to the towers' features "
        "(Projector.standardise)"
    )

    @model_validator(mode="after")
    def source_has_its_files(self) -> "VisionSettings":
        if (self.source == "llava-v1.5") != (self.llava is not None):
            raise ValueError("source llava-v1.5 needs the paths of `llava`, and cards need none")
        if self.source == "llava-v1.5" and self.projector_start == "standardised":
            raise ValueError(
                "projector_start standardised needs the features of all images before training, "
                "which are not computed for llava-v1.5"
            )
        return self

    @model_validator(mode="after")
    def arms_differ(self) -> "VisionSettings":
        if "instruct" in self.arms and self.backbone != "pretrained":
            raise ValueError(
                "the arm instruct is compared with the base model, so it needs backbone "
                f"pretrained, not {self.backbone}"
            )
        return self

    @model_validator(mode="after")
    def towers_are_stated(self) -> "VisionSettings":
        missing = sorted(set(TowerSettings.model_fields) - self.towers.model_fields_set)
        if missing:
            raise ValueError(f"towers lacks {', '.join(missing)}: a scale states every field")
        return self


class TaskSettings(Section):
    """A benchmark by name, see evaluation/benchmarks.py."""

    name: str = Field(description="task or group of lm-evaluation-harness, or of `folder`")
    shots: int | None = Field(default=None, ge=0, description="null: as the task says")
    limit: int | None = Field(default=None, gt=0, description="first items only; null for all")
    folder: str | None = Field(
        default=None, description="folder of task files (.yaml), relative to the root"
    )


class EvaluationSettings(Section):
    """Stage 08: benchmarks."""

    tasks: tuple[TaskSettings, ...] = Field(
        default=(), description="further benchmarks, each one entry"
    )
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
    translation_items_per_language: int = Field(gt=0)
    reasoning_questions: int = Field(
        gt=0, description="generated questions of each group of stage 06's test families"
    )
    checkpoints: tuple[str, ...] = Field(
        description="artifacts whose checkpoints stand in one table, beside the base model"
    )
    checkpoint_items: int = Field(
        gt=0, description="items of each task, the first ones, that the checkpoints answer"
    )
    long_texts: int = Field(gt=0, description="long texts whose loss is measured by position")
    long_text_windows: int = Field(
        gt=1, description="their length in windows, as far as the model has positions"
    )
    needles_per_distance: int = Field(gt=0)
    ngram_training_bytes_per_language: int = Field(
        gt=0, description="training text of the trigram baseline"
    )
    published_tables: tuple[str, ...] = Field(
        description="files of papers/tables (without .csv) to attempt on the hub's weights"
    )


class AdaptationSettings(Optimisation):
    """LoRA on the documentation of one product (serving/adaptation.py); the rate falls linearly."""

    epochs: int = Field(gt=0)
    examples_per_step: int = Field(gt=0)
    max_tokens: int = Field(gt=1, description="of a training row; longer texts are cut")
    ranks: tuple[int, ...] = Field(min_length=1, description="of the adapters; one run for each")
    rows: tuple[int, ...] = Field(
        min_length=1, description="training rows; each rank is trained with each number"
    )
    alpha_over_rank: int = Field(gt=0, description="the adapters' product is weighted by this")


class ApplicationsSettings(Section):
    """Stage 09: a knowledge base, and a model adapted to its pages."""

    languages: tuple[str, ...] = Field(min_length=2, description="of the help pages")
    pages: int | None = Field(
        gt=0, description="of each language, evenly spread; null for all that the card has"
    )
    encoder_blocks: int = Field(
        ge=0, description="blocks of the lab's model after which its states become vectors"
    )
    questions: int = Field(
        gt=0, description="of each kind and language at most, evenly spread over the test half"
    )
    heldout_bytes: int = Field(gt=0, description="held-out text of each kind that is measured")
    heldout_bytes_per_document: int = Field(gt=0)
    context_tokens: int = Field(gt=1, description="most tokens that the model reads at once")
    max_new_tokens: int = Field(gt=0, description="of an answer without retrieval")
    adaptation: AdaptationSettings
