"""`moxin-lab bench tokenizer`: the routed tokenizer beside others, in tokens, speed and memory.

Trains the routed tokenizer and a joint BPE of the same size on the same text, by stage 02's own
code and settings, and sets them beside Mistral's two tokenizers. The text is stage 01's
(`--documents`), or parquet files with the columns language and text (`--train`), for instance the
shards of `moxin-lab corpus build`.

Guarantees: seconds are processor time of one thread (`time.process_time`), so other work on the
machine does not count; the two that a ratio is made of, ours and the joint BPE in `tokenizers`, are
read anew before each timing, since a tokenizer there remembers words of texts before; fast encoders
are timed on ids that were compared with ours first; a peer that is not installed is a row with its
reason.
Out of scope: intervals over pages and verdicts, which notebook 02 computes.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from moxin_lab.tokenizer.routed import RoutedTokenizer

Encode = Callable[[list[str]], Any]

LANGUAGES = ("en", "zh", "ja", "ko", "code")
"""What the models of this project are trained on."""
SPEED_BYTES = 1_500_000
"""Of held-out text of each language, for the speeds."""
ONE_DOCUMENT_BYTES = 16_000_000
REPEATS = 15
"""The best of so many counts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", default="small", help="whose settings (default small)")
    parser.add_argument(
        "--documents",
        type=Path,
        default=Path("runs/tiny/01_data_curation/documents"),
        help="of stage 01: held-out text and declaration, and training text without --train",
    )
    parser.add_argument(
        "--train", type=Path, nargs="+", help="parquet files to train on, or folders of them"
    )
    parser.add_argument("--out", type=Path, help="a new folder for the tokenizer")


@keeping("tokenizer")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: training, tokens by tokenizer and language, speeds, one long document."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, for tokenizers and its trainers
    from moxin_lab import scales
    from moxin_lab.lab import curated
    from moxin_lab.tokenizer import budget, files, measures, peers

    settings = scales.load(options.scale).tokenizer
    heldout, udhr = measures.read_test_text(options.documents)
    declaration = udhr.drop_duplicates("language")
    everything = _texts(options.train or curated.paths(options.documents, "train"), settings)
    texts, validation = budget.hold_back(everything, settings.validation_one_in)
    tokenizer, joint, training, curve = _train(texts, validation, settings)
    out = options.out or Path(tempfile.mkdtemp()) / "tokenizer"
    files.save(tokenizer, out)
    compared = {
        "routed": tokenizer,
        "joint BPE": joint,
        "Mistral v0.1": peers.mistral(),
        "Tekken": peers.tekken(),
    }
    rows: list[dict[str, Any]] = list(training)
    result = {
        "scale": options.scale,
        "blocks": {b.name: len(b) for b in tokenizer.blocks},
        "rows": rows,
        "trade_off": curve,
    }
    keep(result)
    for name, peer in compared.items():
        count = peers.token_counter(peer)
        for language in LANGUAGES[:-1]:
            of = declaration[declaration["language"] == language]["text"].tolist()
            rows.append(_tokens(name, "udhr", language, count(of), of))
        for language in LANGUAGES:
            of = heldout[heldout["language"] == language]["text"].tolist()
            rows.append(_tokens(name, "heldout", language, count(of), of))
        keep(result)
    sample = {
        language: _beginning(heldout[heldout["language"] == language]["text"], SPEED_BYTES)
        for language in LANGUAGES
    }
    rows += _speeds(tokenizer, joint, out, sample)
    keep(result)
    rows.append(_one_document(out, "".join(sample["en"])))
    return result


def _texts(sources: Sequence[Path], settings: Any) -> dict[str, list[str]]:
    """Documents by language, at most the settings' bytes of each, shared among its sources."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from moxin_lab.tokenizer.training_text import read_documents

    tables = []
    for source in _files_of(sources):
        places = [name for name in ("project", "source") if name in pq.read_schema(source).names]
        table = pq.read_table(source, columns=[*places, "language", "text"])
        # A document without a project belongs to its source.
        named = [pc.if_else(pc.equal(table[name], ""), None, table[name]) for name in places]
        table = table.drop(places).append_column("source", pc.coalesce(*named))
        tables.append(table.filter(pc.is_in(table["language"], pa.array(LANGUAGES))))
    return read_documents(pa.concat_tables(tables), settings.training_bytes_per_language)


def _files_of(sources: Sequence[Path]) -> list[Path]:
    """Files as they are, and the parquet files of folders. Raises ValueError if there are none."""
    found = [
        file
        for source in sources
        for file in (sorted(source.glob("*.parquet")) if source.is_dir() else [source])
    ]
    if not found:
        raise ValueError(f"no parquet file in {', '.join(map(str, sources))}")
    return found


def _train(
    texts: dict[str, list[str]], validation: dict[str, list[str]], settings: Any
) -> tuple["RoutedTokenizer", Any, list[dict[str, Any]], list[dict[Any, Any]]]:
    """The routed tokenizer, the joint BPE, a row on the training of each, and how the weights of
    the languages were chosen.
    """
    from moxin_lab.tokenizer import budget, learn, peers, routed

    size = settings.vocab_size
    start = time.process_time()
    pool = learn.learn(
        texts,
        max_candidates=size,
        min_frequency=settings.min_frequency,
        max_token_length=settings.max_token_length,
    )
    learned = time.process_time() - start
    start = time.process_time()
    joint = peers.joint_bpe(texts, size, min_frequency=settings.min_frequency)
    of_joint = time.process_time() - start
    favoured, curve, factor = budget.choose(
        *(pool, settings, routed.ANSWERS),
        validation=validation,
        baseline=peers.token_counter(joint),
    )
    tokenizer = routed.build(
        pool,
        size,
        weights=budget.weights(list(pool.num_bytes), favoured, factor),
        min_tokens_per_expert=settings.min_tokens_per_expert,
        required=routed.ANSWERS,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    common = {"measure": "training", "bytes": sum(pool.num_bytes.values())}
    return (
        tokenizer,
        joint,
        [
            {
                **common,
                "tokenizer": "routed",
                "cpu_seconds": learned,
                "peak_bytes_of_process": peak,
                "weight": factor,
            },
            {**common, "tokenizer": "joint BPE", "cpu_seconds": of_joint},
        ],
        curve.to_dict("records"),
    )


def _tokens(
    name: str, text: str, language: str, counts: Sequence[int], texts: Sequence[str]
) -> dict[str, Any]:
    return {
        "measure": "tokens",
        "tokenizer": name,
        "text": text,
        "language": language,
        "tokens": sum(counts),
        "bytes_per_token": sum(len(t.encode()) for t in texts) / sum(counts),
        "characters_per_token": sum(map(len, texts)) / sum(counts),
    }


def _beginning(texts: Any, num_bytes: int) -> list[str]:
    kept, size = [], 0
    for text in texts:
        if size >= num_bytes:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def _speeds(
    tokenizer: "RoutedTokenizer", joint: Any, folder: Path, sample: dict[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """MB of text a second of one processor, by encoder and language."""
    encoders: dict[str, tuple[Callable[[], Encode] | None, str]] = {
        "tokenizer.json, routed": (_read_anew(tokenizer.union), ""),
        "tokenizer.json, joint BPE": (_read_anew(joint), ""),
        **_fast_encoders(tokenizer, folder, sample),
    }
    ready = {name: make for name, (make, _) in encoders.items() if make is not None}
    seconds: dict[tuple[str, str], float] = {}
    for _ in range(REPEATS):  # in turns, so that what else the machine does meets all alike
        for language, texts in sample.items():
            for name, make in ready.items():
                taken = _cpu_seconds(make(), texts)
                seconds[name, language] = min(seconds.get((name, language), taken), taken)
    for name, (_, reason) in encoders.items():
        if name not in ready:
            yield {"measure": "speed", "encoder": name, "reason": reason}
            continue
        for language, texts in sample.items():
            size = sum(len(text.encode()) for text in texts)
            yield {
                "measure": "speed",
                "encoder": name,
                "language": language,
                "megabytes_per_second": size / seconds[name, language] / 1e6,
            }


def _fast_encoders(
    tokenizer: "RoutedTokenizer", folder: Path, sample: dict[str, list[str]]
) -> dict[str, tuple[Callable[[], Encode] | None, str]]:
    """Encoders that load our files. Raises RuntimeError if one gives other ids than ours."""
    from moxin_lab.tokenizer import files

    plain = files.as_tiktoken(folder)
    one_by_one: dict[str, Callable[[str], Any]] = {"tiktoken": plain.encode_ordinary}
    missing: dict[str, tuple[Callable[[], Encode] | None, str]] = {}
    if find_spec("quicktok") is None:
        missing["quicktok"] = (None, "not installed: pip install quicktok-v1")
    else:
        import quicktok

        quicktok.import_tokenizer(str(folder / "tokenizer.json"), "moxin", data_dir=str(folder))
        one_by_one["quicktok"] = quicktok.Tokenizer("moxin", str(folder)).encode_ordinary
    if find_spec("gigatoken") is None:
        missing["gigatoken"] = (None, "not installed: pip install gigatoken")
    else:
        import gigatoken

        loaded = gigatoken.Tokenizer(str(folder / "tokenizer.json"))
        one_by_one["gigatoken"] = loaded.encode
    for name, encode in one_by_one.items():
        different = [
            text
            for texts in sample.values()
            for text in texts
            if list(encode(text)) != tokenizer.encode(text)
        ]
        if different:
            raise RuntimeError(f"{name} gives other ids for {len(different)} texts")
    return {name: (_each(encode), "") for name, encode in one_by_one.items()} | missing


def _read_anew(tokenizer: "Tokenizer") -> Callable[[], Encode]:
    """Makes an encoder that has seen no text."""
    described = tokenizer.to_str()

    def make() -> Encode:
        fresh = type(tokenizer).from_str(described)
        fresh.encode_special_tokens = True
        return lambda texts: fresh.encode_batch_fast(texts, add_special_tokens=False)

    return make


def _each(encode: Callable[[str], Any]) -> Callable[[], Encode]:
    return lambda: lambda texts: [encode(text) for text in texts]


def _cpu_seconds(call: Encode, texts: list[str]) -> float:
    start = time.process_time()
    call(texts)
    return time.process_time() - start


def _one_document(folder: Path, text: str) -> dict[str, Any]:
    """Seconds and memory for one document of 16 MB and for one of 4 MB, each in its own process."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from moxin_lab.tokenizer import files\n"
        "tokenizer = files.load(Path(sys.argv[1])); text = Path(sys.argv[2]).read_text()\n"
        "start = time.process_time(); ids = tokenizer.encode(text)\n"
        "seconds = time.process_time() - start\n"
        "assert tokenizer.decode(ids) == text\n"
        # not getrusage: its maximum survives exec, so it would be that of the parent
        "status = Path('/proc/self/status').read_text()\n"
        "print(seconds, 1024 * int(status.split('VmHWM:')[1].split()[0]))\n"
    )
    result: dict[str, Any] = {"measure": "one document", "tokenizer": "routed"}
    with tempfile.TemporaryDirectory() as name:
        for size in (ONE_DOCUMENT_BYTES // 4, ONE_DOCUMENT_BYTES):
            file = Path(name) / "text"
            file.write_text((text * (size // len(text) + 1))[:size])
            printed = subprocess.run(
                [sys.executable, "-c", script, str(folder), str(file)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            result[f"cpu_seconds_{size // 1_000_000}_mb"] = float(printed[0])
            result[f"peak_bytes_{size // 1_000_000}_mb"] = int(printed[1])
    return result
