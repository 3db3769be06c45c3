"""The corpus: built from three small packages, extracted, packed and read back."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moxin_lab.data import (
    archive_stream,
    corpus,
    corpus_card,
    corpus_pack,
    corpus_packages,
    corpus_text,
)
from moxin_lab.data.archive_stream import stream_files
from moxin_lab.data.archives import Archive, ArchiveError
from moxin_lab.data.corpus_packages import fetch_package, read_packages, read_replaced
from moxin_lab.data.corpus_rules import Package, describe, is_wanted
from tests.data.test_sources import deb_bytes, tar_bytes

PAGE = "<html><body><main><h1>도움말</h1><p>{} 창을 엽니다.</p></main></body></html>"
HELP = {
    **{f"usr/help/ko/{n:02d}.html": PAGE.format(n).encode() for n in range(5)},
    "usr/help/ja/00.html": "<html><body><main><p>窓を開く。</p></main></body></html>".encode(),
    "usr/help/ko/cut.html": b"<html><body><p>cut <scr",
    "usr/share/man/ja/man1/a.1.gz": gzip.compress(
        ".TH A 1\n.SH 名前\na \\- 例\n".encode(), mtime=0
    ),
    "usr/help/picture.png": b"\x89PNG",
}
CODE = {"package/src/a.ts": b"let a: number = 1\n", "package/readme.nothing": b"# no"}
EXAMPLES = {"pygments-1/tests/examplefiles/ada/x.adb": b"procedure X is\n"}


def package(folder: Path, kind: str, name: str, content: bytes, **rules: object) -> Package:
    file = {"deb": f"{name}_1_all.deb", "npm": f"{name}-1.tgz", "pypi": f"{name}-1.tar.gz"}[kind]
    own = folder / f"{kind}-{name}"
    own.mkdir(parents=True)
    (own / file).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    archive = Archive(kind, name, "1", file, digest, "MIT")  # type: ignore[arg-type]
    return Package(archive, len(content), project=name, **rules)  # type: ignore[arg-type]


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "downloads"
    return [
        package(
            folder,
            "deb",
            "help",
            deb_bytes(HELP),
            include=("usr/*",),
            locale=r"(?:help|man)/([a-z]{2})/",
        ),
        package(
            folder,
            "npm",
            "code",
            tar_bytes(CODE, mode="w:gz"),
            include=("*",),
            language="code",
            code="name",
        ),
        package(
            folder,
            "pypi",
            "pygments",
            tar_bytes(EXAMPLES, mode="w:gz"),
            include=("*/examplefiles/*/*",),
            language="code",
            code="folder",
        ),
    ]


def build(tmp_path, packages, name="cache"):
    return corpus_text.build(
        tmp_path / name, packages, archives=tmp_path / "downloads", say=lambda line: None
    )


def digests(folder):
    files = sorted(folder.glob("*/*.parquet"))
    return {f"{f.parent.name}/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_three_packages_become_shards_that_curation_reads(tmp_path, packages, monkeypatch):
    build(tmp_path, packages)
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path / "cache"))
    raw = [
        row for file in corpus.sources("small", "raw") for row in pq.read_table(file).to_pylist()
    ]
    rows = [row for file in corpus.sources("small") for row in pq.read_table(file).to_pylist()]
    text = {row["id"]: row for row in rows}
    assert {row["path"]: row["content"] for row in raw}["usr/help/ko/00.html"] == HELP[
        "usr/help/ko/00.html"
    ]
    assert text["help/usr/share/man/ja/man1/a.1"]["text"] == "名前\n\na - 例"
    assert text["code/package/src/a.ts"]["text"] == "let a: number = 1\n"
    assert {row["code_language"] for row in rows} == {"", "typescript", "ada"}
    # translations of a page share it
    assert text["help/usr/help/ko/00.html"]["page"] == text["help/usr/help/ja/00.html"]["page"]
    assert text["help/usr/help/ko/00.html"]["language"] == "ko"


def test_every_file_is_a_document_or_rejected_with_a_reason(tmp_path, packages):
    built = build(tmp_path, packages)
    rows = built["groups"]
    assert sum(row["files"] for row in rows) == 10
    assert sum(row["documents"] for row in rows) == 9
    assert sum(built["rejected"].values()) == 1


def test_a_build_that_was_killed_goes_on_and_gives_the_same_bytes(tmp_path, packages, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD_BYTES", 200)  # several shards a package
    build(tmp_path, packages)
    killed = tmp_path / "killed"
    corpus.build_raw(killed, packages[:1], archives=tmp_path / "downloads", say=lambda line: None)
    (killed / "raw" / "code-00000.partial").write_bytes(b"half")
    fetched = []
    real = fetch_package
    monkeypatch.setattr(
        corpus,
        "fetch_package",
        lambda p, *rest: fetched.append(p.archive.package) or real(p, *rest),
    )
    build(tmp_path, packages, "killed")
    assert fetched == ["code", "pygments"]
    assert digests(tmp_path / "cache") == digests(killed)
    assert len(digests(killed)) > 9


def test_a_build_that_is_not_finished_is_no_source(tmp_path, packages, monkeypatch):
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path / "cache"))
    with pytest.raises(corpus.CorpusError, match="moxin-lab corpus build --scale small"):
        corpus.sources("small")
    build(tmp_path, packages)
    (tmp_path / "cache" / "text" / "help-00000.parquet").unlink()
    with pytest.raises(corpus.CorpusError, match="help-00000"):
        corpus.sources("small")
    assert "10 files" in corpus_text.status(tmp_path / "cache")


def test_another_archive_than_the_recorded_one_is_refused(tmp_path, packages):
    file = tmp_path / "downloads" / "npm-code" / "code-1.tgz"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ArchiveError):
        build(tmp_path, packages[1:2])
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_version_that_is_gone_is_refused_with_the_remedy_or_recorded(
    tmp_path, packages, monkeypatch
):
    own = tmp_path / "downloads" / "deb-help"
    content = (own / "help_1_all.deb").read_bytes()
    (own / "help_1_all.deb").unlink()
    client = tmp_path / "apt-get"
    served = tmp_path / "served.deb"
    served.write_bytes(content + b"\n")
    client.write_text(
        f'#!/bin/sh\ncase "$2" in *=*) echo "E: Version not found" >&2; exit 100;; esac\n'
        f"cp {served} help_1%3a2_all.deb\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ArchiveError, match="--allow-newer"):
        build(tmp_path, packages[:1])
    built = corpus_text.build(
        tmp_path / "cache",
        packages[:1],
        archives=tmp_path / "downloads",
        allow_newer=True,
        say=lambda line: None,
    )
    record = built["packages"][0]
    assert (record["version"], record["recorded"]) == ("1:2", False)
    assert record["sha256"] == hashlib.sha256(content + b"\n").hexdigest()
    assert "not the recorded version" in corpus_text.status(tmp_path / "cache")


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "a\\b"])
def test_a_name_that_leads_out_refuses_the_archive(tmp_path, name):
    file = tmp_path / "a.tgz"
    file.write_bytes(tar_bytes({name: b"x"}, mode="w:gz"))
    with pytest.raises(ArchiveError, match="unsafe"):
        list(stream_files(file, "npm", lambda name: True))


def test_a_bomb_is_refused(tmp_path):
    file = tmp_path / "a.tgz"
    file.write_bytes(tar_bytes({"a.gz": gzip.compress(bytes(10**6)), "b": bytes(10**5)}))
    with pytest.raises(ArchiveError, match="more than 1,000 bytes"):
        list(stream_files(file, "npm", lambda name: True, max_member=1000))
    with pytest.raises(ArchiveError, match="unpacks to more than"):
        list(stream_files(file, "npm", lambda name: False, max_archive=50_000))


@pytest.mark.parametrize("cut", [0, 4, 100, 300, -10])
def test_a_damaged_archive_is_refused_by_name(tmp_path, cut):
    file = tmp_path / "help.deb"
    file.write_bytes(deb_bytes(HELP)[:cut])
    with pytest.raises(ArchiveError, match=r"help\.deb"):
        list(stream_files(file, "deb", lambda name: True))


def test_a_file_that_is_also_there_compressed_is_given_once(tmp_path):
    file = tmp_path / "a.tgz"
    file.write_bytes(tar_bytes({"a.html": b"x", "a.html.gz": gzip.compress(b"x")}, mode="w:gz"))
    assert list(stream_files(file, "npm", lambda name: True)) == [("a.html", b"x")]
    assert archive_stream.MAX_MEMBER_BYTES < archive_stream.MAX_ARCHIVE_BYTES


def test_the_list_is_whole_and_names_what_is_gone():
    listed = read_packages()
    assert {entry.archive.kind for entry in listed} == {"deb", "npm", "pypi"}
    assert all(len(entry.archive.sha256) == 64 and entry.archive.licence for entry in listed)
    names = {entry.archive.package for entry in listed}
    assert all(set(gone["by"]) <= names and gone["reason"] for gone in read_replaced())
    assert not {gone["package"] for gone in read_replaced()} & names


def test_the_format_and_language_come_from_the_path():
    by_name = {entry.archive.package: entry for entry in read_packages()}
    path = "usr/share/help/zh_TW/gnome-help/about.page"
    file = describe(by_name["gnome-user-docs"], path)
    assert (file.format, file.language) == ("docbook", "zh")
    assert file.page == "gnome-user-docs/usr/share/help/*/gnome-help/about.page"
    assert describe(by_name["gnome-user-docs"], path.replace("zh_TW", "C")).language == "en"
    assert describe(by_name["golang-1.19-src"], "usr/x/a.go").code_language == "go"
    assert not is_wanted(by_name["rust-web-doc"], "usr/share/doc/src/a.html")


def test_the_card_has_the_numbers_of_the_build_and_a_change_is_found(
    tmp_path, packages, monkeypatch
):
    build(tmp_path, packages)
    monkeypatch.setattr(corpus_card, "read_packages", lambda: packages)
    folder = tmp_path / corpus_card.FOLDER
    folder.mkdir(parents=True)
    readme = folder / "README.md"
    readme.write_text(f"# Card\n{corpus_card.BEGIN}\n{corpus_card.END}\n")
    corpus_card.write_card(tmp_path, tmp_path / "cache")
    assert corpus_card.problems(tmp_path) == []
    text = readme.read_text()
    assert packages[0].archive.sha256 in text and "| man | 1 | 1 |" in text
    readme.write_text(text.replace("| man | 1 |", "| man | 2 |"))
    assert "numbers are not those" in corpus_card.problems(tmp_path)[0]
    monkeypatch.setattr(corpus_card, "read_packages", lambda: packages[1:])
    assert "help is not as listed" in corpus_card.problems(tmp_path)[0]
    readme.unlink()
    assert "is missing" in corpus_card.problems(tmp_path)[0]


@pytest.fixture
def tokenizer(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: i for i, name in enumerate(["<s>", "</s>", *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(tmp_path / "tokenizer")
    return fast


def test_packed_documents_are_read_back(tmp_path, packages, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_pack, "PART_BYTES", 4096)
    monkeypatch.setattr(corpus_pack, "INDEX_ROWS", 2)
    build(tmp_path, packages)
    files = sorted((tmp_path / "cache" / "text").glob("*.parquet"))
    manifest = corpus_pack.pack(files, tmp_path / "tokenizer", tmp_path / "out", lambda line: None)
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    again = {}
    for pool in manifest["pools"]:
        read = corpus_pack.read_pool(tmp_path / "out", pool)
        for index, name in enumerate(read.names):
            ids = read.ids[read.offsets[index] : read.offsets[index + 1]]
            assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            again[name] = tokenizer.decode(ids[1:-1])
    assert again == {row["id"]: row["text"] for row in rows}
    assert all(file["bytes"] <= 4096 for file in manifest["files"].values())
    assert manifest["dtype"] == "<u2" and set(manifest["pools"]) == {"code", "ja", "ko"}


def test_pools_packed_with_another_tokenizer_are_refused(tmp_path, packages, tokenizer):
    build(tmp_path, packages)
    files = sorted((tmp_path / "cache" / "text").glob("*.parquet"))
    folder, out = tmp_path / "tokenizer", tmp_path / "out"
    corpus_pack.pack(files, folder, out, lambda line: None)
    pools = corpus_pack.read_pools(out, ["ko", "ja", "ko"], folder)
    assert list(pools) == ["ja", "ko"] and len(pools["ko"].names) == len(pools["ko"].offsets) - 1
    other = tmp_path / "other"
    other.mkdir()
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(corpus.CorpusError, match="packed with another tokenizer"):
        corpus_pack.read_pools(out, ["ko"], other)


def test_a_part_that_was_changed_is_refused(tmp_path, packages, tokenizer):
    build(tmp_path, packages)
    files = sorted((tmp_path / "cache" / "text").glob("*.parquet"))
    corpus_pack.pack(files, tmp_path / "tokenizer", tmp_path / "out", lambda line: None)
    part = tmp_path / "out" / "ko-00000.bin"
    part.write_bytes(part.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(corpus.CorpusError, match=r"ko-00000\.bin"):
        corpus_pack.read_pool(tmp_path / "out", "ko")
    part.unlink()
    with pytest.raises(corpus.CorpusError, match="missing"):
        corpus_pack.read_pool(tmp_path / "out", "ko")
    with pytest.raises(corpus.CorpusError, match="not empty"):
        corpus_pack.pack(files, tmp_path / "tokenizer", tmp_path / "out")
    with pytest.raises(corpus.CorpusError, match="no packed corpus"):
        corpus_pack.read_pool(tmp_path, "ko")


@pytest.mark.skipif(
    os.environ.get("MOXIN_NETWORK") != "1", reason="fetches a package: set MOXIN_NETWORK=1"
)
def test_a_recorded_package_is_fetched_and_built(tmp_path):
    wanted = [entry for entry in read_packages() if entry.archive.package == "rxjs"]
    built = corpus_text.build(tmp_path, wanted, say=lambda line: None)
    assert built["packages"][0]["sha256"] == wanted[0].archive.sha256
    assert json.loads((tmp_path / "build.json").read_text())["groups"][0]["text_bytes"] > 500_000
    assert corpus_packages.PACKAGES_FILE.is_file()
