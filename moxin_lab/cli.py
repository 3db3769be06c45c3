"""`moxin-lab`: run, status, verify, cards, mof, chat, bench. Each command imports inside itself, so
`--help` answers at once.

Exit codes: 0 done, 1 the command found or met something wrong and says what, 2 the command line is
wrong, 130 stopped by Ctrl-C, 141 the reader of the output has gone (`moxin-lab status | head -1`).

Guarantees: a command that works on another tree than the one it was called in says so; `run` and
`status` refuse a tree whose own package is not the one that is running.
Out of scope: what the commands do (`lab/runner.py`, `openness/verify.py`, `data/cards.py`, ...).
"""

import argparse
import os
import select
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from moxin_lab import __version__
from moxin_lab.stages import StageInfo


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: this process's); its exit code."""
    try:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # Otherwise the interpreter would try to flush once more, and say that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)  # 0: only errors, which are always reported
    except (OSError, ValueError):  # a test's stand-in for a stream
        return False
    return bool(poll.poll(0))


def _main(words: list[str]) -> int:
    parser = _parser(words[words.index("bench") + 1] if "bench" in words[:-1] else None)
    options = parser.parse_args(words)
    options.words = words
    if options.command is None:
        parser.print_help()
        return 2
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError

    try:
        decides_as = "tiny"
        if hasattr(options, "scale"):
            packaged = options.scale in scales.SCALES
            scale = scales.use(options.scale, None if packaged else _root(options))
            options.scale, decides_as = scale.name, scale.decides_as
        # Nothing below the full scale may reach for a hub; libraries read these when they are first
        # imported.
        if decides_as != "full":
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        return options.call(options)
    except (LabError, scales.ScaleError) as error:
        print(f"moxin-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "moxin-lab: stopped; the next run resumes at the stage that was running",
            file=sys.stderr,
        )
        return 130


def _parser(chosen_bench: str | None = None) -> argparse.ArgumentParser:
    from moxin_lab.bench import BENCHES, add_common_arguments, load

    parser = argparse.ArgumentParser(
        prog="moxin-lab", description="The reproducibility lab for Moxin-7B."
    )
    parser.add_argument("--version", action="version", version=f"moxin-lab {__version__}")
    parser.add_argument(
        "--root",
        default=None,
        metavar="FOLDER",
        help="the repository (default: found from here, else the installed clone)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(call=call)
        return sub

    def with_scale(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument(
            "--scale",
            default="tiny",
            help="tiny (default), small, full, or the name or file of a scale of your own",
        )
        return sub

    run = with_scale(
        command(
            "run",
            _run,
            "run the notebooks that are not up to date, then build the report and its manifest",
        )
    )
    run.add_argument("--seed", type=int, default=0, help="seed of every stage (default 0)")
    run.add_argument(
        "--from", dest="first", metavar="STAGE", help="begin at this stage (a number or a name)"
    )
    run.add_argument(
        "--only",
        action="append",
        metavar="STAGE",
        help="run this stage only; may be given several times",
    )
    run.add_argument("--force", action="store_true", help="run even what is up to date")
    run.add_argument(
        "--dry-run", action="store_true", help="show what would run and why, and run nothing"
    )
    status = with_scale(
        command("status", _status, "show for each stage whether it would run, and why")
    )
    status.add_argument("--seed", type=int, default=0)
    verify = command(
        "verify",
        _verify,
        "recompute every hash of a report's manifest; exit 1 with the list of what differs",
    )
    verify.add_argument(
        "folder",
        nargs="?",
        metavar="DIR",
        help="a clone, a copy of one, or a report's folder alone (default: the current folder)",
    )
    # not `scale`: a report can be checked where the file of its scale is not known
    verify.add_argument(
        "--scale",
        dest="report_scale",
        help="which report of a clone (default: tiny); a report's folder knows its own",
    )
    cards = command(
        "cards",
        _cards,
        "check the data cards, rebuild one from the package archives that it came from, or add "
        "preference pairs that a run sampled from its model to the card `preferences`",
    )
    cards.add_argument("action", choices=("check", "build", "on-policy"))
    cards.add_argument(
        "name",
        nargs="?",
        help="the data card to build; for on-policy, the file sampled_pairs.parquet of notebook 05",
    )
    cards.add_argument(
        "--archives",
        metavar="FOLDER",
        help="folder that has the archives (default: fetch them with apt-get, npm and pip)",
    )
    mof = command("mof", _mof, "evaluate a MOF.yml by the rules of the Model Openness Framework")
    mof.add_argument("file", nargs="?", help="default: MOF.yml of the repository")
    chat = command("chat", _chat, "ask a vision-language model about an image, in the terminal")
    chat.add_argument(
        "--image", metavar="FILE", required=True, help="the image that the conversation is about"
    )
    chat.add_argument(
        "--model",
        metavar="FOLDER",
        help="a folder that vision.hf.save wrote (default: stage 07's, of --scale)",
    )
    chat.add_argument(
        "--ask",
        metavar="TEXT",
        help="one question; its answer is printed, and nothing is read from the keyboard",
    )
    chat.add_argument("--max-new-tokens", type=int, default=64)
    with_scale(chat)
    bench = command("bench", _bench, "measure speed and memory, with peers in the same run")
    benches = bench.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, help in BENCHES.items():
        sub = benches.add_parser(name, help=help, description=help)
        add_common_arguments(sub)
        if chosen_bench == name:  # of this one alone, for a bench's module may import much
            load(name).add_arguments(sub)
    return parser


def _root(options: argparse.Namespace) -> Path:
    """The repository that a command works on. Says so where it is not the one called in."""
    from moxin_lab.lab.artifacts import LabError, find_root

    if options.root is None:
        try:
            options.root = find_root()
        except LabError:
            options.root = find_root(Path(__file__).parent)
            print(
                f"moxin-lab: {Path.cwd()} is not inside a repository; using {options.root}, "
                "from which this command is installed",
                file=sys.stderr,
            )
    return find_root(options.root)


def _root_of_this_package(options: argparse.Namespace) -> Path:
    """As `_root`. Raises LabError for a tree with a package of its own that is not this one: its
    notebooks would run one package, with stages and scales of the other.
    """
    from moxin_lab.lab.artifacts import LabError

    root, here = _root(options), Path(__file__).resolve().parent
    package = root / "moxin_lab"
    if (package / "__init__.py").is_file() and package.resolve() != here:
        command = shlex.join([sys.executable, "-m", "moxin_lab.cli", *options.words])
        raise LabError(
            f"{root} has its own moxin_lab, but this command runs {here}; "
            f"use the tree's own: cd {shlex.quote(str(root))} && {command}"
        )
    return root


def _chosen_stages(options: argparse.Namespace) -> tuple[StageInfo, ...]:
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.stages import STAGES, find_stage

    try:
        if options.only and options.first:
            raise LabError("--only and --from exclude each other")
        if options.only:
            wanted = {find_stage(name).name for name in options.only}
            return tuple(info for info in STAGES if info.name in wanted)
        if options.first:
            return STAGES[STAGES.index(find_stage(options.first)) :]
    except ValueError as error:
        raise LabError(str(error)) from None
    return STAGES


def _run(options: argparse.Namespace) -> int:
    from moxin_lab.lab import runner
    from moxin_lab.lab.artifacts import LabError

    root = _root_of_this_package(options)
    stages = _chosen_stages(options)
    if options.dry_run:
        wanted = {info.name for info in stages}
        for name, reasons in runner.status(root, options.scale, options.seed):
            if name in wanted:
                _print_status(name, reasons or (["forced"] if options.force else []))
        return 0
    try:
        runner.run(root, options.scale, seed=options.seed, stages=stages, force=options.force)
    except runner.StageFailed:
        # Not after a run that was refused: the report then belongs to the run at work.
        try:
            _publish(root, options.scale)
        except LabError as problem:
            # printed here, so that it does not hide why the stage failed
            print(f"moxin-lab: the report was not built: {problem}", file=sys.stderr)
        raise
    index = _publish(root, options.scale)
    _print_summary(root, options.scale)
    print(f"report: {index.relative_to(root)}")
    return 0


def _publish(root: Path, scale: str) -> Path:
    """Pages first, then the manifest that binds them."""
    from moxin_lab.lab import site
    from moxin_lab.openness import verify

    index = site.build_site(root, scale)
    verify.write_manifest(root, scale)
    return index


def _print_summary(root: Path, scale: str) -> None:
    from moxin_lab.lab.artifacts import read_record
    from moxin_lab.stages import STAGES

    records = [record for info in STAGES if (record := read_record(root, scale, info.name))]
    print(f"{'stage':24} {'seconds':>9} {'peak memory':>12}")
    for record in records:
        memory = record["peak_memory_bytes"] / 2**30
        print(f"{record['stage']:24} {record['seconds']:9.1f} {memory:8.2f} GiB")
    print(f"{'total':24} {sum(record['seconds'] for record in records):9.1f}")


def _status(options: argparse.Namespace) -> int:
    from moxin_lab.lab import runner

    root = _root_of_this_package(options)
    for name, reasons in runner.status(root, options.scale, options.seed):
        _print_status(name, reasons)
    return 0


def _print_status(name: str, reasons: list[str]) -> None:
    print(f"{name:24} {'would run: ' + '; '.join(reasons) if reasons else 'up to date'}")


def _verify(options: argparse.Namespace) -> int:
    from moxin_lab.openness import verify

    folder = Path(options.folder or options.root or ".")
    checked = verify.verify_folder(folder, options.report_scale)
    for problem in checked.problems:
        print(problem)
    print(f"verify: {checked.summary()}")
    return 1 if checked.problems else 0


def _cards(options: argparse.Namespace) -> int:
    from moxin_lab.data import cards
    from moxin_lab.data.archives import ArchiveError
    from moxin_lab.data.card_files import CardError
    from moxin_lab.lab.artifacts import LabError

    root = _root(options)
    if options.action != "check":
        if options.name is None:
            wanted = {
                "build": "data card to build: moxin-lab cards build NAME",
                "on-policy": "file: moxin-lab cards on-policy FILE",
            }
            raise LabError(f"name the {wanted[options.action]}")
        archives = Path(options.archives) if options.archives else None
        try:
            if options.action == "on-policy":
                cards.add_on_policy(root, Path(options.name))
            else:
                cards.rebuild(root, options.name, archives)
        except (ArchiveError, CardError, ValueError) as error:
            raise LabError(str(error)) from error
        return 0
    problems = cards.check(root)
    for problem in problems:
        print(problem)
    where = root / "data_cards"
    print(f"{where}: " + (f"{len(problems)} problem(s)" if problems else "all as recorded"))
    return 1 if problems else 0


def _mof(options: argparse.Namespace) -> int:
    from moxin_lab.openness import mof

    path = Path(options.file) if options.file else _root(options) / "MOF.yml"
    print(f"{path}:")
    print(mof.format_text(mof.evaluate(path)))
    return 0


def _chat(options: argparse.Namespace) -> int:
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.vision import terminal
    from moxin_lab.vision.images import ImageError

    try:
        folder = (
            Path(options.model)
            if options.model
            else terminal.find_model(_root(options), options.scale)
        )
        return terminal.chat(
            folder, options.image, question=options.ask, max_new_tokens=options.max_new_tokens
        )
    except (ImageError, OSError, ValueError) as error:
        raise LabError(str(error)) from error


def _bench(options: argparse.Namespace) -> int:
    import json

    import torch

    from moxin_lab import bench
    from moxin_lab.lab.artifacts import LabError

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LabError(
            "--device cuda: PyTorch sees no GPU here; use --device cpu or another machine"
        )
    result = bench.record(options.bench, options.device, bench.load(options.bench).run(options))
    if options.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    bench.print_table(result["rows"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
