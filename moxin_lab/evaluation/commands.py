"""`moxin-lab evaluate` and `moxin-lab benchmarks`: their arguments, and what is printed.

Imports the harness only when a command runs. Out of scope: the work (`evaluate`, `result_files`,
`benchmark_sets`).
"""

import argparse
from pathlib import Path


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="checkpoint folder (Mistral or LLaMA architecture), or a GGUF file",
    )
    parser.add_argument(
        "--tasks",
        metavar="NAME,...",
        default="",
        help="tasks or groups of lm-evaluation-harness, of --include or of this package "
        "(`moxin-lab benchmarks list`), or YAML files",
    )
    parser.add_argument(
        "--include", metavar="PATH", type=Path, help="folder of task files of yours, or one file"
    )
    parser.add_argument(
        "--shots", type=_number, metavar="N", help="examples before each item (default: the task's)"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first items only")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write results and samples")
    parser.add_argument(
        "--no-texts",
        action="store_true",
        help="in OUT, hashes in place of items, prompts and answers (what may be passed on)",
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="files of the moxin_cloze and bits_per_byte tasks"
    )
    parser.add_argument(
        "--engine",
        choices=("lab", "hf"),
        default="lab",
        help="our decoder (default), or lm-eval's adapter of transformers for any architecture",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--max-length", type=_positive, metavar="N", help="most tokens of a request"
    )
    parser.add_argument("--new-tokens", type=_positive, metavar="N", help="longest generation")
    parser.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="rows, for --engine hf"
    )
    parser.add_argument(
        "--online", action="store_true", help="let the harness fetch a task's data from the hub"
    )
    parser.add_argument(
        "--needles",
        nargs="+",
        type=Path,
        metavar="TEXT",
        help="ask for a word said up to two windows before instead, hidden in these text files; "
        "--window N sets an attention window, --limit the items per distance",
    )
    parser.add_argument(
        "--window", type=_positive, metavar="N", help="for --needles (default: the model's own)"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="compare results files instead: each beside the first, with paired intervals",
    )


def add_benchmarks_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `benchmarks`."""
    parser.add_argument("action", choices=("list", "fetch"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="sets (default: all)")
    parser.add_argument(
        "--archives", metavar="DIR", type=Path, help="folder that has the package archives"
    )


def evaluate(options: argparse.Namespace) -> int:
    """Run `moxin-lab evaluate`. Raises LabError."""
    from moxin_lab.lab.artifacts import LabError

    if options.compare:
        if len(options.compare) < 2:
            raise LabError("--compare takes at least two results files")
        from moxin_lab.evaluation import result_files

        print(result_files.compare(options.compare))
        return 0
    if options.model is None:
        raise LabError("name the checkpoint: moxin-lab evaluate --model DIR --tasks NAME,...")
    from moxin_lab.evaluation import evaluate as evaluation
    from moxin_lab.evaluation import result_files

    if options.needles:
        print(
            evaluation.find_needles(
                options.model,
                options.needles,
                window=options.window,
                count=options.limit or 24,
                out=options.json,
            )
        )
        return 0
    rows = evaluation.evaluate(
        options.model,
        [name for name in options.tasks.split(",") if name],
        include=options.include,
        shots=options.shots,
        limit=options.limit,
        out=options.json,
        data=options.data,
        engine=options.engine,
        max_length=options.max_length,
        new_tokens=options.new_tokens,
        dtype=options.dtype,
        batch_size=options.batch_size,
        texts=not options.no_texts,
        online=options.online,
    )
    print(result_files.in_text(rows))
    if options.json:
        print(f"\nwritten: {options.json}")
    return 0


def benchmarks(options: argparse.Namespace) -> int:
    """Run `moxin-lab benchmarks`. Raises LabError."""
    from moxin_lab.evaluation import benchmark_sets

    if options.action == "fetch":
        for path in benchmark_sets.fetch(options.names, options.archives):
            print(path)
        return 0
    for row in benchmark_sets.table():
        if not options.names or row["set"] in options.names:
            here = row["file"] or "not here"
            print(f"{row['set']:20} {row['items']:>6}  {row['source']}\n{'':28}{row['licence']}")
            print(f"{'':28}{here}")
    return 0


def _number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("it must be 0 or more")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return value
