"""Files of documents: whatever a line holds, it is a row, or set aside with the reason."""

import pyarrow as pa
import pytest

from moxin_lab.data import readers
from moxin_lab.data.extract import CurationError

HOSTILE_LINES = {
    "[" * 100_000: ("invalid JSON", "it is nested too deeply (more than 100 levels)"),
    '{"text": ' + '{"a": ' * 50_000: ("invalid JSON", "it is nested too deeply"),
    '["a list"]': ("invalid JSON", "list instead of an object"),
    "7": ("invalid JSON", "int instead of an object"),
    '{"text": "cut': ("invalid JSON", "Unterminated string"),
    '{"text": "a", "text": "b"}': ("invalid JSON", "the key 'text' is given twice"),
    '{"text": "\\ud800"}': ("invalid Unicode", "a lone surrogate at 0"),
    '{"text": 5}': ("no text", "column 'text' is null or empty"),
    '{"other": "x"}': ("no text", "column 'text' is null or empty"),
    '{"text": null, "site": {"a": []}}': ("no text", "column 'text' is null or empty"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".jsonl.zst"])
def test_a_bad_line_is_set_aside_with_its_reason_and_the_others_are_read(suffix, tmp_path):
    good = ['{"text": "One.", "site": ["a", "b"]}', '\ufeff{"text": "Two\u2028.", "site": 3}']
    plain = "\r\n".join([good[0], *HOSTILE_LINES, good[1]]).encode()
    kind = {".jsonl": None, ".json.gz": "gzip", ".jsonl.zst": "zstd"}[suffix]
    data = pa.compress(plain, codec=kind, asbytes=True) if kind else plain
    (tmp_path / f"a{suffix}").write_bytes(data)
    layout = readers.plain("text", "en", project="site")
    given = readers.Input("x", layout, readers.files_below(str(tmp_path)))
    first, *bad, last = given.read(given.files[0]).sort("id").to_pylist()
    assert (first["text"], first["project"], first["id"]) == ("One.", "a, b", "x/a/000000000")
    assert (last["text"], last["project"], last["step"]) == ("Two\u2028.", "3", None)
    for row, (reason, detail) in zip(bad, HOSTILE_LINES.values(), strict=True):
        assert (row["step"], row["reason"], row["text"]) == ("reading", reason, "")
        assert detail in row["detail"]


def test_one_json_list_is_refused_with_what_to_write_instead(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"},\n {"text": "b"}]')
    given = readers.Input("x", readers.plain("text", "en"), readers.files_below(str(tmp_path)))
    with pytest.raises(CurationError, match=r"a\.json is one JSON list; write an object a line"):
        given.read(given.files[0])
