"""A few rows of every hub set and model that the full scale reads, as local files of the hub's
schema, and a repository root whose data cards are cut to a few rows.

Texts come from the data cards of this repository; columns are those of the sets on the hub.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from moxin_lab.scales.sections import TowerSettings

DOCUMENT_CHARACTERS = 1800
SHOWN_PAGE = "swriter/guide/insert_graphic_fromchart"  # notebook 01 shows it
UDHR_LANGUAGES = ("en", "zh", "ja", "ko", "ru", "ar", "hi", "th", "vi")


def write_root(root: Path, repository: Path) -> None:
    """Links to the repository, and its data cards with a few rows each."""
    for name in (
        "notebooks",
        "moxin_lab",
        "papers",
        "reports",
        "release",
        "requirements.lock",
        "LICENSE",
    ):
        (root / name).symlink_to(repository / name)
    for name in ("MOF.yml", "MOF.evidence.yml", "pyproject.toml", "README.md", "CITATION.cff"):
        (root / name).symlink_to(repository / name)
    for card in sorted((repository / "data_cards").iterdir()):
        target = root / "data_cards" / card.name
        target.mkdir(parents=True)
        for item in card.iterdir():
            if item.name != "data":
                (target / item.name).symlink_to(item)
        if (card / "data").is_dir():  # a card may describe what a command builds
            (target / "data").mkdir()
        for file in sorted((card / "data").glob("*.parquet")):
            table = pq.read_table(file, partitioning=None)
            pq.write_table(_few(card.name, table), target / "data" / file.name)


def _few(card: str, table: pa.Table) -> pa.Table:
    frame = table.to_pandas()
    if card == "help_pages":
        pages = sorted(set(frame["page"]))
        chosen = {*pages[:: len(pages) // 72], SHOWN_PAGE}  # enough for questions of each kind
        keep = frame["page"].isin(chosen)
    elif card == "udhr":
        keep = frame["language"].isin(UDHR_LANGUAGES)
    elif card in ("instructions", "preferences"):
        keep = np.arange(len(frame)) % max(1, len(frame) // 150) == 0
    elif card in ("emoji", "charts"):
        keep = np.arange(len(frame)) % max(1, len(frame) // 60) == 0
    else:
        keep = np.ones(len(frame), dtype=bool)
    return table.filter(pa.array(np.asarray(keep)))


def write_hub(folder: Path, repository: Path) -> dict[str, str]:
    """Local folders by hub name, as the key `hub: paths` of a scale file holds them."""
    cards = repository / "data_cards"
    prose = _pieces(pq.read_table(cards / "python_docs/data/train.parquet")["rst"].to_pylist())
    code = _pieces(
        pq.read_table(cards / "code_samples/data/pygments.parquet")["content"].to_pylist()
    )
    slim, dclm = prose[0:110], prose[110:220]
    slim += [text.replace("the", "a", 1) + " Once more." for text in slim[::12]]  # near-duplicates
    sets = {
        "cerebras/SlimPajama-627B": [
            {"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in slim
        ],
        "mlfoundations/dclm-baseline-1.0": [
            {
                "text": text,
                "url": f"https://example.org/{index}",
                "language_id_whole_page_fasttext": {"en": 0.9},
                "metadata": {"WARC-Type": "response"},
            }
            for index, text in enumerate(dclm)
        ],
        "bigcode/the-stack-dedup": [
            {
                "hexsha": f"{index:040x}",
                "size": len(text),
                "ext": "py",
                "lang": "Python",
                "max_stars_repo_path": f"{index}.py",
                "max_stars_repo_licenses": ["MIT"],
                "max_stars_repo_name": f"owner/project{index // 3}",
                "content": text,
            }
            for index, text in enumerate(code[:90])
        ],
        "cais/mmlu": _mmlu(),
        "Rowan/hellaswag": _hellaswag(),
        **_instructions(cards),
        **_reasoning(),
    }
    paths = {name: _write_rows(folder, name, rows) for name, rows in sets.items()}
    paths["moxin-org/Moxin-7B-LLM"] = _write_tokenizer(folder / "released")
    return paths


def _pieces(contents: list[bytes]) -> list[str]:
    """Texts of DOCUMENT_CHARACTERS each, from the middle of longer ones."""
    texts = [content.decode("utf-8", "ignore") for content in contents]
    step = DOCUMENT_CHARACTERS
    return [
        text[start : start + step]
        for text in texts
        for start in range(step, min(len(text) - step, 4 * step), step)
    ]


def _mmlu() -> list[dict]:
    return [
        {
            "question": f"What is {a} + {b}?",
            "subject": "",
            "choices": [str(a + b + shift - a % 4) for shift in range(4)],
            "answer": a % 4,
        }
        for a in range(10)
        for b in range(8)
    ]


def _hellaswag() -> list[dict]:
    return [
        {
            "ind": index,
            "activity_label": "Baking cookies",
            "ctx_a": f"A person puts tray number {index} into an oven.",
            "ctx_b": "then the person",
            "ctx": f"A person puts tray number {index} into an oven. then the person",
            "endings": [f"waits {index} minutes.", "flies away.", "[substeps] sings.", "sleeps."],
            "source_id": f"activitynet~v_{index}",
            "split": "train",
            "split_type": "indomain",
            "label": "0",
        }
        for index in range(60)
    ]


def _instructions(cards: Path) -> dict[str, list[dict]]:
    rows = pd.read_parquet(cards / "instructions/data/train.parquet")
    pairs = pd.read_parquet(cards / "preferences/data/train.parquet")

    def plain(messages) -> list[dict[str, str]]:
        return [{"content": one["content"], "role": one["role"]} for one in messages]

    short = rows[rows["messages"].map(lambda turns: sum(len(t["content"]) for t in turns)) < 300]
    return {
        "allenai/tulu-3-sft-mixture": [
            {"id": f"t_{index}", "messages": plain(row.messages), "source": "ai2-adapt-dev/flan_v2"}
            for index, row in enumerate(short.iloc[:: max(1, len(short) // 40)].itertuples())
        ],
        "allenai/llama-3.1-tulu-3-8b-preference-mixture": [
            {
                "id": f"p_{index}",
                "prompt": row.prompt[-1]["content"],
                "chosen": plain([*row.prompt, *row.chosen]),
                "rejected": plain([*row.prompt, *row.rejected]),
                "source": "ultrafeedback",
            }
            for index, row in enumerate(pairs.head(24).itertuples())
        ],
    }


def _reasoning() -> dict[str, list[dict]]:
    sums = [(a, b) for a in range(2, 30) for b in range(2, 9)]
    return {
        "open-thoughts/OpenThoughts-114k": [
            {
                "system": "Think first.",
                "conversations": [
                    {"from": "user", "value": f"Add {a} and {b}."},
                    {"from": "assistant", "value": rf"{a}+{b}={a + b} \boxed{{{a + b}}}"},
                ],
            }
            for a, b in sums[:16]
        ],
        "open-r1/OpenR1-Math-220k": [
            {
                "problem": f"What is {a} times {b}?",
                "solution": str(a * b),
                "answer": str(a * b),
                "generations": [rf"{a}*{b}={a * b} \boxed{{{a * b}}}"],
                "correctness_math_verify": [True],
                "correctness_llama": None,
            }
            for a, b in sums[:16]
        ],
        "agentica-org/DeepScaleR-Preview-Dataset": [
            {"problem": f"Compute {a} - {b}.", "answer": str(a - b), "solution": ""}
            for a, b in sums
        ],
    }


def _write_rows(folder: Path, name: str, rows: list[dict]) -> str:
    """Parquet or, as DCLM comes, compressed JSON lines."""
    place = folder / name
    place.mkdir(parents=True)
    if name.startswith("mlfoundations"):
        import gzip

        with gzip.open(place / "part.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), place / "part-00000.parquet")
    return str(place)


def _write_tokenizer(folder: Path) -> str:
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


def write_llava(root: Path, files: dict[str, str]) -> None:
    """LLaVA's two files and their images, where the scale's `vision: llava` says."""
    rng = np.random.default_rng(0)
    captions, mixed = [], []
    for index in range(12):
        name = f"00453/{index:09d}.jpg"
        path = root / files["images"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30 + index, 3), dtype=np.uint8)).save(path)
        turns = [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": f"picture {index}"},
        ]
        captions.append({"id": str(index), "image": name, "conversations": turns})
        mixed.append({"id": f"m{index}", "image": name, "conversations": turns})
    spoken = [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]
    mixed.append({"id": "text", "model": "", "conversations": spoken})
    for key, records in (("align", captions), ("finetune", mixed)):
        path = root / files[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records), encoding="utf-8")


def write_checkpoints(root: Path, files: dict[str, str], settings: TowerSettings) -> None:
    """Weights in timm's format where the scale's `vision: checkpoints` says."""
    import timm

    for name, file in files.items():
        shape = getattr(settings, f"{name}_shape")
        torch.manual_seed(0)
        model = timm.create_model(
            getattr(settings, name), img_size=settings.image_size, num_classes=0, **shape
        )
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
