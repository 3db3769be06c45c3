"""`moxin-lab bench compression`: held-out bits per byte and bytes of a model, pruned or quantised.

Every variant is made from the same weights and scored on the same held-out documents of stage 01:
8 and 4 bits through torchao and in GGUF, and zeros by magnitude and by Wanda, at several shares and
in the pattern 2:4. Wanda's calibration is text that stage 01 keeps for training.

Guarantees: each variant is scored from what was written and read back (torchao, GGUF) or from the
pruned weights; differences to the dense model are paired by document; a variant that cannot be made
is a row with its reason.
Out of scope: speed. Zeros save nothing in a dense file: `bytes` of a pruned row is what would be
stored with one bit per weight for its place (2:4: two bits for each weight that stays).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping
from moxin_lab.lab import measured

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from moxin_lab.export.folders import Source
    from moxin_lab.model.decoder import MoxinForCausalLM

DENSE = "dense"
TORCHAO = ("torchao-int8", "torchao-int4")
GGUF = ("q8_0", "q4_0")
KINDS = ("torchao", "gguf", "pruned")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a model's folder (or GGUF file) and what to call it; may be given several times",
    )
    parser.add_argument("--documents", metavar="FOLDER", help="the documents of stage 01")
    parser.add_argument(
        "--languages", default="en", help="of the documents, with commas (default en)"
    )
    parser.add_argument("--heldout", type=int, default=64, help="documents to score (default 64)")
    parser.add_argument(
        "--document-bytes", type=int, default=600, help="most bytes of each (default 600)"
    )
    parser.add_argument(
        "--calibration",
        type=int,
        default=16,
        metavar="ROWS",
        help="rows of training text for Wanda (default 16)",
    )
    parser.add_argument("--tokens", type=int, default=256, help="of a row (default 256)")
    parser.add_argument(
        "--shares",
        default=",".join(map(str, SHARES)),
        help=f"of zeros, with commas (default {','.join(map(str, SHARES))})",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        help="of variants, beside the dense model (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of documents")
    parser.add_argument("--picture", metavar="FILE.svg", help="also draw the curve, from the rows")
    parser.add_argument(
        "--from-json", nargs="+", metavar="FILE", help="measure nothing: draw from these files"
    )


@keeping("compression")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """One row per model and variant, and the settings."""
    result = _read(options.from_json) if options.from_json else _measured(options, keep)
    if options.picture:
        draw(result["rows"], Path(options.picture))
    return result


def _measured(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    from moxin_lab.export import folders
    from moxin_lab.lab.artifacts import LabError

    if not (options.model and options.documents):
        raise LabError("name --model NAME=FOLDER and --documents FOLDER, or --from-json FILE")
    models = dict(_named(word) for word in options.model)
    shares = [_share(word) for word in options.shares.split(",")]
    for path in models.values():
        folders.check(path, "hf", path.parent / f"{path.name}.none")
    languages = options.languages.split(",")
    heldout = choose(Path(options.documents), "heldout", languages, options)
    training = choose(Path(options.documents), "train", languages, options)
    rows: list[dict[str, Any]] = []
    result = {"rows": rows, "settings": _settings(options, heldout)}
    for name, path in models.items():
        for row in variants(folders.read(path), heldout, training, shares, options):
            rows.append({"model": name, **row})
            keep(result)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return result


def _read(files: list[str]) -> dict[str, Any]:
    """The rows of several records, and the settings of each."""
    from moxin_lab.lab.artifacts import LabError

    rows: list[dict[str, Any]] = []
    settings = {}
    for file in files:
        try:
            record = json.loads(Path(file).read_text(encoding="utf-8"))
            if cut := measured.unfinished(record):
                raise ValueError(cut)
            rows += record["rows"]
            settings[Path(file).name] = record["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LabError(f"{file} is no record of this bench: {error!r}") from error
    return {"rows": rows, "settings": settings}


def choose(
    documents: Path, side: str, languages: list[str], options: argparse.Namespace
) -> pd.DataFrame:
    """Documents of stage 01 in an order drawn with the seed, cut to their first bytes: those to
    score, or for `train` enough to fill the calibration. Raises LabError where there are too few.
    """
    from moxin_lab.evaluation import heldout
    from moxin_lab.lab import curated
    from moxin_lab.lab.artifacts import LabError

    try:
        table = curated.read(documents, side, ["id", "language", "text", "num_bytes"]).to_pandas()
    except (FileNotFoundError, ValueError) as error:
        raise LabError(f"--documents: {error}") from error
    table = table[table["language"].isin(languages)].sort_values("id", ignore_index=True)
    if side == "train":
        wanted, size = 4 * options.calibration, 8 * options.tokens
    else:
        wanted, size = options.heldout, options.document_bytes
    if len(table) < min(wanted, 2):
        raise LabError(
            f"{documents} has {len(table)} documents of {', '.join(languages)} in {side}: name "
            "other --languages"
        )
    chosen = table.sample(min(wanted, len(table)), random_state=options.seed)
    return heldout.beginnings(chosen.reset_index(drop=True), max_bytes=size)


def calibration_ids(source: Source, training: pd.DataFrame, rows: int, tokens: int) -> torch.Tensor:
    """Token ids of training documents, bos before each, in rows of one length: int64 [rows, T].
    Raises LabError where the documents are too few to fill them.
    """
    import torch

    from moxin_lab.evaluation.bits_per_byte import prefix_token_id
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.model import plain_text

    bos = prefix_token_id(source.tokenizer)
    stream: list[int] = []
    for ids in plain_text.encode(source.tokenizer, training["text"].tolist()):
        stream += [bos, *ids]
    if len(stream) < rows * tokens:
        raise LabError(
            f"the training text has {len(stream):,} tokens, {rows * tokens:,} are asked for: lower "
            "--calibration or --tokens"
        )
    return torch.tensor(stream[: rows * tokens]).view(rows, tokens)


def variants(
    source: Source,
    heldout: pd.DataFrame,
    training: pd.DataFrame,
    shares: list[float],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """A row for the dense model and for each variant, as they are measured."""
    from moxin_lab.evaluation import bits_per_byte as bpb
    from moxin_lab.evaluation.statistics import bootstrap_interval, paired_bootstrap
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.model import pruning

    model = source.model.to(options.device)
    tokens = bpb.encode_documents(source.tokenizer, heldout["text"].tolist())
    num_bytes = heldout["num_bytes"].to_numpy()
    calibration = calibration_ids(source, training, options.calibration, options.tokens)
    context = min(model.config.sliding_window or 512, model.config.max_position_embeddings, 512)

    def score(scored: Any) -> Any:
        return bpb.document_losses(
            scored,
            tokens,
            context=context,
            bos_id=bpb.prefix_token_id(source.tokenizer),
            device=options.device,
        )

    dense = score(model) / _LN2
    files = dense_bytes(model)

    def row(variant: str, size: int, bits: Any, **more: Any) -> dict[str, Any]:
        estimate = bootstrap_interval(bits, num_bytes, seed=options.seed)
        difference = paired_bootstrap(bits, dense, num_bytes, seed=options.seed)
        return {
            "variant": variant,
            **more,
            "bytes": size,
            "bytes_share": size / files,
            "bits_per_byte": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "difference": difference.value,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }

    yield row(DENSE, files, dense, zeros=0.0)
    for variant, measure in stored_variants(source):
        if variant.partition("-")[0] not in options.kinds:
            continue
        try:
            size, scored = measure()
        except LabError as error:
            yield {"variant": variant, "reason": str(error)}
            continue
        yield row(variant, size, score(scored) / _LN2)
    if "pruned" not in options.kinds:
        return
    before = {name: linear.weight.detach().clone() for name, linear in pruning.matrices(model)}
    for share in (*shares, pruning.TWO_OF_FOUR):
        for method in pruning.METHODS:
            pruning.prune(model, method, share, calibration=calibration.to(options.device))
            zeros = pruning.zero_share(model)
            name = f"{method} 2:4" if share == pruning.TWO_OF_FOUR else method
            size = sparse_bytes(model, two_of_four=share == pruning.TWO_OF_FOUR)
            yield row(name, size, score(model) / _LN2, zeros=zeros)
            for key, linear in pruning.matrices(model):
                linear.weight.data.copy_(before[key])


def stored_variants(
    source: Source,
) -> Iterator[tuple[str, Callable[[], tuple[int, Any]]]]:
    """Names of the quantised variants, each with what writes it, reads it back and returns the
    bytes of its weights and the model.
    """
    from transformers import AutoModelForCausalLM

    from moxin_lab.export import folders, gguf_file
    from moxin_lab.model import gguf_reader

    def through_torchao(target: str) -> tuple[int, Any]:
        folders.need("torchao")
        from moxin_lab.export import quantised

        with tempfile.TemporaryDirectory() as work:
            report = quantised.write(source.model, Path(work), target)
            size = report["bytes_packed"]
            return size, AutoModelForCausalLM.from_pretrained(work, dtype="auto").eval()

    def through_gguf(kind: str) -> tuple[int, Any]:
        folders.need("gguf")
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "model.gguf"
            gguf_file.write(source.model, source.tokenizer, source.path, path, kind=kind)
            return path.stat().st_size, gguf_reader.from_gguf(path)

    for target in TORCHAO:
        yield target, partial(through_torchao, target)
    for kind in GGUF:
        yield f"gguf-{kind}", partial(through_gguf, kind)


def dense_bytes(model: MoxinForCausalLM) -> int:
    """Bytes of all weights as they are, tied ones once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def sparse_bytes(model: MoxinForCausalLM, *, two_of_four: bool) -> int:
    """Bytes of all weights if the matrices of the blocks were stored without their zeros: a bit per
    number for its place, or with 2:4 two bits for each of the two numbers that stay of four.
    """
    from moxin_lab.model import pruning

    total = dense_bytes(model)
    for _, linear in pruning.matrices(model):
        weight = linear.weight
        numbers, size = weight.numel(), weight.element_size()
        staying = numbers // 2 if two_of_four else int((weight != 0).sum())
        places = staying * 2 if two_of_four else numbers
        total += staying * size + places // 8 - numbers * size
    return total


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the curve: bits per byte above the dense model's, paired by document, by share of
    zeros, with 95 % intervals; a panel per model, quantised variants as lines across.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["model"] for row in rows))
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "moxin", "font.size": 11})
    figure, panels = plt.subplots(
        1, len(names), figsize=(4.6 * len(names), 4.2), layout="constrained", squeeze=False
    )
    for axes, name in zip(panels[0], names, strict=True):
        own: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["model"] == name and "bits_per_byte" in row:
                own.setdefault(row["variant"], []).append(row)
        dense = own[DENSE][0]
        for method, colour, mark in (("magnitude", "#d55e00", "s"), ("wanda", "#0072b2", "o")):
            curve = [dense, *own.get(method, [])]
            low, high = ([row[f"difference_{side}"] for row in curve] for side in ("low", "high"))
            shares = [100 * row["zeros"] for row in curve]
            axes.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
            values = [row["difference"] for row in curve]
            axes.plot(shares, values, color=colour, marker=mark, label=method)
            for row in own.get(f"{method} 2:4", []):
                axes.plot(
                    100 * row["zeros"] + (1 if method == "wanda" else -1),  # side by side
                    row["difference"],
                    color=colour,
                    marker="*",
                    markersize=13,
                    markerfacecolor="white",
                    linestyle="none",
                    label=f"{method}, 2 of 4",
                )
        for variant, dashes in (("torchao-int8", ":"), ("torchao-int4", "--")):
            for row in own.get(variant, []):
                axes.axhline(row["difference"], color="#555555", linestyle=dashes, label=variant)
        axes.set(title=name, xlabel="weights of the blocks that are zero, %")
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("held-out bits per byte, above dense")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


_LN2 = 0.6931471805599453


def _named(word: str) -> tuple[str, Path]:
    from moxin_lab.lab.artifacts import LabError

    name, equals, folder = word.partition("=")
    if not (name and equals and folder):
        raise LabError(f"--model {word}: write NAME=FOLDER")
    return name, Path(folder)


def _share(word: str) -> float:
    from moxin_lab.lab.artifacts import LabError

    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise LabError(f"--shares: {word!r} is no share between 0 and 1")
    return share


def _settings(options: argparse.Namespace, heldout: pd.DataFrame) -> dict[str, Any]:
    return {
        "languages": options.languages.split(","),
        "heldout_documents": len(heldout),
        "heldout_bytes": int(heldout["num_bytes"].sum()),
        "document_bytes": options.document_bytes,
        "calibration_rows": options.calibration,
        "calibration_tokens": options.calibration * options.tokens,
        "seed": options.seed,
    }
