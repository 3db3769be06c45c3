"""The table of stages: what each notebook takes and leaves.

    stage_info("02_tokenizer").takes       # ("documents",)
    find_stage("2").name                   # "02_tokenizer"

The runner, `moxin-lab status`, the stage object and the report site read this one table.

Guarantees: a notebook that asks for an artifact, a data card or a scale section that its row does
not list is refused, so table and notebooks agree; importing this module imports nothing heavy.
Out of scope: paths and hashes of artifacts (`lab/artifacts.py`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    """One row: a notebook of the same name in `notebooks/`, in the order in which stages run."""

    name: str
    title: str
    takes: tuple[str, ...] = ()
    """Artifacts of earlier stages."""
    may_take: tuple[str, ...] = ()
    """Artifacts of earlier stages that its settings can ask for; they are needed only then."""
    leaves: tuple[str, ...] = ()
    """Artifacts that this stage writes; no two stages write one of the same name."""
    data_cards: tuple[str, ...] = ()
    """Folders of `data_cards/` that it reads."""
    sections: tuple[str, ...] = ()
    """Sections of the scale file that it reads."""
    reads: tuple[str, ...] = ()
    """Other files or folders of the repository whose content decides its result."""
    reads_records: bool = False
    """True where it reads every earlier stage's `stage.json`."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every artifact of earlier stages that it can ask for."""
        return (*self.takes, *self.may_take)


STAGES: tuple[StageInfo, ...] = (
    StageInfo(
        "01_data_curation",
        "Data curation",
        leaves=("documents",),
        data_cards=(
            "help_pages",
            "python_docs",
            "code_samples",
            "conversations",
            "udhr",
            "instructions",
        ),
        sections=("data", "hub"),
    ),
    StageInfo(
        "02_tokenizer",
        "The routed tokenizer",
        takes=("documents",),
        leaves=("tokenizer",),
        sections=("tokenizer", "hub"),
    ),
    StageInfo(
        "03_model",
        "The 36-block model",
        takes=("tokenizer",),
        leaves=("architecture",),
        sections=("model",),
        reads=(
            "reports/released/h100",
            "reports/released/expansion-tiny-cpu",
            "reports/released/train-step-tiny-cpu",
        ),
    ),
    StageInfo(
        "04_pretraining",
        "Three-phase pretraining",
        takes=("documents", "tokenizer", "architecture"),
        leaves=("pretrained", "phase_checkpoints", "training_log"),
        sections=("pretraining",),
        reads=(
            "reports/released/pretraining-small/pretraining.json",
            "reports/released/ladder/ladder.json",
            "reports/released/ablations/ablations.json",
            "reports/released/ablations/depth-and-initialisation.json",
            "reports/released/smollm2-expansion/smollm2-expansion.json",
            "reports/released/scaling/scaling.json",
        ),
    ),
    StageInfo(
        "05_instruction_tuning",
        "Instruction tuning",
        takes=("tokenizer", "pretrained"),
        leaves=("sft", "instruct", "tuning_log"),
        data_cards=("instructions", "preferences"),
        sections=("instruction_tuning", "hub"),
    ),
    StageInfo(
        "06_reasoning",
        "Reasoning",
        takes=("tokenizer", "instruct"),
        leaves=("cot_sft", "reasoning", "reasoning_log"),
        sections=("reasoning", "hub"),
    ),
    StageInfo(
        "07_vision_language",
        "Vision and language",
        takes=("tokenizer",),
        may_take=("pretrained", "instruct", "reasoning"),
        leaves=("vision_towers", "vlm", "vision_log"),
        data_cards=("emoji", "charts"),
        sections=("vision",),
        reads=("papers/tables",),
    ),
    StageInfo(
        "08_benchmarks",
        "Benchmarks",
        takes=("documents", "tokenizer", "pretrained"),
        may_take=("phase_checkpoints", "sft", "instruct", "cot_sft", "reasoning", "vlm"),
        leaves=("evaluation_results",),
        sections=("evaluation", "reasoning", "vision", "hub"),
        reads=("papers/tables", "reports/released/smollm2-benchmarks/long_context.json"),
    ),
    StageInfo(
        "09_applications",
        "Applications",
        takes=("documents", "pretrained", "instruct", "vlm"),
        leaves=("knowledge_base", "adapted", "applications_log"),
        data_cards=("help_pages", "emoji", "charts"),
        sections=("applications", "vision"),
    ),
    StageInfo(
        "10_openness_report",
        "Openness report",
        leaves=("openness",),
        reads=(
            "papers",
            "MOF.yml",
            "MOF.evidence.yml",
            "LICENSES",
            "release",
            "scales",
            "data_cards",
            "notebooks",
            "moxin_lab",
            "requirements.lock",
            # the files of papers/nearest_evidence.yml
            "reports/released/ablations/ablations.json",
            "reports/released/ablations/depth-and-initialisation.json",
            "reports/released/compression/smollm2.json",
            "reports/released/compression/tiny.json",
            "reports/released/corpus-small/run",
            "reports/released/curation/quality.json",
            "reports/released/ladder/ladder.json",
            "reports/released/pretraining-small/pretraining.json",
            "reports/released/smollm2-benchmarks/long_context.json",
            "reports/released/smollm2-expansion/smollm2-expansion.json",
            "reports/released/tokenizer-32k/extension.json",
        ),
        reads_records=True,
    ),
)


def stage_info(name: str) -> StageInfo:
    """The row of a stage by its full name. Raises ValueError naming the known stages."""
    for info in STAGES:
        if info.name == name:
            return info
    raise ValueError(
        f"unknown stage {name!r}; the stages are {', '.join(info.name for info in STAGES)}"
    )


def find_stage(prefix: str) -> StageInfo:
    """The stage with a full name, a number (`04`, `4`) or an unambiguous beginning of a name, as
    typed on a command line. Raises ValueError naming the known stages.
    """
    beginning = prefix.zfill(2) if prefix.isdigit() else prefix
    matches = [info for info in STAGES if info.name.startswith(beginning)]
    if len(matches) != 1:
        known = ", ".join(info.name for info in STAGES)
        raise ValueError(
            f"{prefix!r} names {len(matches) or 'no'} stage(s); the stages are {known}"
        )
    return matches[0]


def producer(artifact: str) -> StageInfo:
    """The stage that leaves an artifact. Raises ValueError if none does."""
    for info in STAGES:
        if artifact in info.leaves:
            return info
    raise ValueError(f"no stage leaves an artifact named {artifact!r}")
