"""The corpus outside the tree is part of the key of the stage that reads it."""

import json

from moxin_lab import scales
from moxin_lab.lab import cache
from moxin_lab.lab.keys import key_parts
from moxin_lab.stages import stage_info


def build(folder, **changes):
    built = {"packages": [{"package": "p", "sha256": "a"}], "shards": ["p-0"], "seconds": 3.0}
    folder.mkdir(exist_ok=True)
    (folder / "build.json").write_text(json.dumps(built | changes))


def test_the_hash_is_of_packages_and_shards_and_of_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path))
    assert cache.corpus_hash() is None
    build(tmp_path)
    first = cache.corpus_hash()
    build(tmp_path, seconds=9.0)
    assert cache.corpus_hash() == first
    for change in ({"shards": ["p-0", "p-1"]}, {"packages": [{"package": "p", "sha256": "b"}]}):
        build(tmp_path, **change)
        assert cache.corpus_hash() not in (None, first)


def test_stage_01_of_the_scale_that_reads_the_corpus_has_it_in_its_key(
    tmp_path, repository, monkeypatch
):
    monkeypatch.setenv("MOXIN_CORPUS", str(tmp_path))
    build(tmp_path)
    found = {
        name: key_parts(repository, stage_info("01_data_curation"), scales.load(name), {})["corpus"]
        for name in ("tiny", "small")
    }
    assert found == {"tiny": None, "small": cache.corpus_hash()}
