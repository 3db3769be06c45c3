"""The artifact of stage 01: what is read is what was written, and damage is named."""

import pandas as pd
import pytest

from moxin_lab.lab import curated


def documents_file(folder, **changes):
    table = pd.DataFrame(
        {
            "id": [f"d{number}" for number in range(500)],
            "source": "help_pages",
            "language": "en",
            "text": [f"text number {number**5} of the document" for number in range(500)],
        }
    ).assign(**changes)
    path = folder / "train" / "00001.parquet"
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path)
    return path


def test_all_shards_are_read_in_the_order_of_their_names(tmp_path):
    first = documents_file(tmp_path).rename(tmp_path / "train" / "00000.parquet")
    documents_file(tmp_path, source="udhr")
    assert curated.paths(tmp_path, "train")[0] == first
    table = curated.read(tmp_path, "train", ["source", "id"])
    assert table.column_names == ["source", "id"]
    assert table["source"].to_pylist() == ["help_pages"] * 500 + ["udhr"] * 500
    assert [len(shard) for shard in curated.shards(tmp_path, "train")] == [500, 500]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-200], "is damaged or not a parquet file"),
        (lambda content: content[:3000] + bytes(600) + content[3600:], "is damaged or not a parq"),
        (lambda content: b"<html>", "is damaged or not a parquet file"),
        (lambda content: b"", "is damaged or not a parquet file"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    path = documents_file(tmp_path)
    assert len(curated.read(tmp_path, "train")) == 500
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"00001.parquet {message}"):
        curated.read(tmp_path, "train")


def test_a_shard_without_text_in_a_row_or_without_a_column_is_named(tmp_path):
    documents_file(tmp_path, text=["a"] * 499 + [None])
    with pytest.raises(ValueError, match=r"00001.parquet: 1 rows have no text.* first is row 499"):
        curated.read(tmp_path, "train")
    documents_file(tmp_path, text=range(500))
    with pytest.raises(ValueError, match=r"00001.parquet: text is int64, not text"):
        curated.read(tmp_path, "train")
    path = documents_file(tmp_path)
    pd.read_parquet(path).drop(columns="language").to_parquet(path)
    with pytest.raises(ValueError, match=r"00001.parquet lacks language"):
        curated.read(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="heldout has no parquet file: run stage 01"):
        curated.read(tmp_path, "heldout")
