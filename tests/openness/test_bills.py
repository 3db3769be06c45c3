"""Bills of materials state the same facts in two formats; each lack and each contradiction in one
is named, offline.
"""

import json
import shutil

import pytest

from moxin_lab import cli
from moxin_lab.lab import bills_page
from moxin_lab.lab.artifacts import LabError, write_json
from moxin_lab.openness import bill_facts, bills, cyclonedx_bill, spdx_bill

DIGEST = "ab" * 32


pytestmark = pytest.mark.usefixtures("no_network")


def record(stage, outputs, inputs, cards, measures=(), settings=None):
    return {
        "stage": stage,
        "scale": "tiny",
        "key": None,
        "settings": settings or {},
        "inputs": {name: {"stage": maker, "sha256": DIGEST} for name, maker in inputs.items()},
        "data_cards": {name: {"sha256": DIGEST} for name in cards},
        "outputs": {
            name: {
                "sha256": DIGEST,
                "size": 2048,
                "files": {"a.bin": {"sha256": DIGEST, "size": 1}},
            }
            for name in outputs
        },
        "measures": list(measures),
        "claims": [],
        "environment": {"git_commit": "0123456789abcdef" * 2 + "01234567"},
        "finished_at": "2026-11-29T10:00:00Z",
    }


MEASURE = {"name": "loss", "value": 2.5, "unit": "nats", "labels": {"phase": 1}, "interval": None}


@pytest.fixture
def root(repository, tmp_path):
    """Two cards, a lock of two packages, and a run of three stages."""
    for name in ("udhr", "conversations"):
        shutil.copytree(repository / "data_cards" / name, tmp_path / "data_cards" / name)
    shutil.copy(repository / "CITATION.cff", tmp_path)
    (tmp_path / "requirements.lock").write_text("torch==2.13.0 \\\n    --hash=x\nnumpy==2.4.6\n")
    for made in (
        record("01_data_curation", ["documents"], {}, ["udhr", "conversations"]),
        record("02_tokenizer", ["tokenizer"], {"documents": "01_data_curation"}, []),
        record(
            "04_pretraining",
            ["pretrained"],
            {"documents": "01_data_curation", "tokenizer": "02_tokenizer"},
            [],
            [MEASURE],
            {"pretraining": {"learning_rate": 0.001, "phases": [1, 2]}},
        ),
    ):
        write_json(tmp_path / "runs/tiny" / made["stage"] / "stage.json", made)
    return tmp_path


def written(root):
    paths = bills.write(root, "tiny")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def test_both_bills_are_valid_and_the_same_run_gives_the_same_bytes(root):
    paths = bills.write(root, "tiny")
    before = [path.read_bytes() for path in paths]
    assert [bills.faults(path) for path in paths] == [[], []]
    assert [path.read_bytes() for path in bills.write(root, "tiny")] == before


def test_both_formats_state_the_same_models_data_hashes_and_licences(root):
    spdx, cyclonedx = written(root)

    def of_spdx(kind):
        elements = [e for e in spdx["@graph"] if e["type"] == kind]
        return {(e["name"], e["verifiedUsing"][0]["hashValue"]) for e in elements}

    def of_cyclonedx(kind):
        parts = [c for c in cyclonedx["components"] if c["type"] == kind]
        return {(c["name"], c["hashes"][0]["content"]) for c in parts}

    models = {("tokenizer", DIGEST), ("pretrained", DIGEST)}
    assert of_spdx("ai_AIPackage") == of_cyclonedx("machine-learning-model") == models
    assert of_spdx("dataset_DatasetPackage") == of_cyclonedx("data")
    facts = bill_facts.gather(root, "tiny")
    assert of_cyclonedx("data") == {(data.name, data.sha256) for data in facts.data}
    libraries = {c["purl"] for c in cyclonedx["components"] if c["type"] == "library"}
    assert libraries == {"pkg:pypi/torch@2.13.0", "pkg:pypi/numpy@2.4.6"}
    assert {e.get("software_packageUrl") for e in spdx["@graph"]} >= libraries


def test_a_set_for_evaluation_is_tested_on_and_never_trained_on(root):
    spdx, cyclonedx = written(root)
    relations = {
        (e["from"].rsplit(":", 1)[1], e["relationshipType"]): [t.rsplit(":", 1)[1] for t in e["to"]]
        for e in spdx["@graph"]
        if e["type"] == "Relationship"
    }
    assert relations["pretrained", "trainedOn"] == ["conversations"]
    assert relations["pretrained", "testedOn"] == ["udhr"]
    assert relations["pretrained", "descendantOf"] == ["tokenizer"]
    model = next(c for c in cyclonedx["components"] if c["name"] == "pretrained")
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data:conversations"}]


def test_measures_and_settings_are_those_of_the_stage(root):
    model = next(m for m in bill_facts.gather(root, "tiny").models if m.name == "pretrained")
    assert model.metrics == (("loss (phase 1) [nats]", "2.5"),)
    assert model.hyperparameters == (("pretraining.learning_rate", "0.001"),)
    assert model.trained_on == ("conversations", "udhr")


def test_what_is_only_compared_with_or_read_for_another_model_is_not_training_data(root):
    curated = record("01_data_curation", ["documents"], {}, ["conversations", "instructions"])
    tuned = record(
        "05_instruction_tuning",
        ["sft", "instruct"],
        {"pretrained": "04_pretraining"},
        ["instructions", "preferences"],
    )
    for made in (curated, tuned):
        write_json(root / "runs/tiny" / made["stage"] / "stage.json", made)
    trained = {m.name: m.trained_on for m in bill_facts.gather(root, "tiny").models}
    assert trained == {
        "tokenizer": ("conversations",),
        "pretrained": ("conversations",),
        "sft": ("conversations", "instructions"),
        "instruct": ("conversations", "instructions", "preferences"),
    }


def test_a_run_without_models_has_a_valid_bill(root):
    shutil.rmtree(root / "runs")
    spdx, cyclonedx = written(root)
    assert not [c for c in cyclonedx["components"] if c["type"] == "machine-learning-model"]
    assert [e for e in spdx["@graph"] if e["type"] == "dataset_DatasetPackage"]


SPDX_CHANGES = {
    "no location": (
        "ai_AIPackage",
        lambda e: e.pop("software_downloadLocation"),
        "downloadLocation",
    ),
    "no supplier": ("ai_AIPackage", lambda e: e.pop("suppliedBy"), "suppliedBy"),
    "no time": ("dataset_DatasetPackage", lambda e: e.pop("builtTime"), "builtTime"),
    "no type": ("dataset_DatasetPackage", lambda e: e.pop("dataset_datasetType"), "datasetType"),
    "a wrong type": (
        "dataset_DatasetPackage",
        lambda e: e.update(dataset_datasetType=["novel"]),
        "refuses it",
    ),
    "a size in words": (
        "dataset_DatasetPackage",
        lambda e: e.update(dataset_datasetSize="big"),
        "refuses it",
    ),
    "a hash without its method": (
        "ai_AIPackage",
        lambda e: e["verifiedUsing"][0].pop("algorithm"),
        "refuses it",
    ),
    "an unknown property": ("ai_AIPackage", lambda e: e.update(ai_colour="red"), "refuses it"),
    "no creation": ("ai_AIPackage", lambda e: e.pop("creationInfo"), "refuses it"),
    "a target that is not there": (
        "Relationship",
        lambda e: e.update(to=["urn:moxin-lab:none"]),
        "refers to urn:moxin-lab:none",
    ),
    "an agent that is a package": (
        "ai_AIPackage",
        lambda e: e.update(suppliedBy=e["spdxId"]),
        "refuses it",
    ),
    "a time in another form": (
        "CreationInfo",
        lambda e: e.update(created="2026-11-29T10:00:00+01:00"),
        "not correctly formatted",
    ),
    "an abstract class": (
        "software_Package",
        lambda e: e.update(type="software_SoftwareArtifact"),
        "abstract",
    ),
    "a size below zero": (
        "dataset_DatasetPackage",
        lambda e: e.update(dataset_datasetSize=-1),
        "refuses it",
    ),
    "a relationship to nothing": ("Relationship", lambda e: e.update(to=[]), "refuses it"),
    "another version": ("CreationInfo", lambda e: e.update(specVersion="3.0.0"), "specVersion"),
    "no root": ("SpdxDocument", lambda e: e.pop("rootElement"), "rootElement"),
    "no name": ("dataset_DatasetPackage", lambda e: e.update(name=""), "has no name"),
    "a hash of a wrong length": (
        "ai_AIPackage",
        lambda e: e["verifiedUsing"][0].update(hashValue="abc"),
        "is no SHA-256",
    ),
    "a licence in words": (
        "simplelicensing_LicenseExpression",
        lambda e: e.update(simplelicensing_licenseExpression="Apache or so ("),
        "no SPDX licence expression",
    ),
    "a licence that SPDX lacks": (
        "simplelicensing_LicenseExpression",
        lambda e: e.update(simplelicensing_licenseExpression="MIT AND Foo-1.0"),
        "unknown: Foo-1.0",
    ),
    "a licence that is an agent": (
        "declared licence",
        lambda e: e.update(to=[e["spdxId"].partition(":model:")[0] + ":agent:lab"]),
        "leads to something else",
    ),
    "no licence": (
        "declared licence",
        lambda e: e.update(relationshipType="other"),
        "hasDeclaredLicense, not one",
    ),
}


def is_declared_licence_of_a_model(element):
    is_licence = element.get("relationshipType") == "hasDeclaredLicense"
    return is_licence and ":model:" in element["from"]


@pytest.mark.parametrize("name", SPDX_CHANGES)
def test_what_is_wrong_with_an_spdx_bill_is_named(root, name):
    kind, change, fault = SPDX_CHANGES[name]
    spdx, _ = written(root)
    if kind == "declared licence":
        change(next(e for e in spdx["@graph"] if is_declared_licence_of_a_model(e)))
    else:
        change(next(e for e in spdx["@graph"] if e["type"] == kind))
    assert fault in " ".join(spdx_bill.faults(json.dumps(spdx)))


def test_an_id_that_is_used_twice_and_a_context_of_another_version_are_named(root):
    spdx, _ = written(root)
    agent = next(e for e in spdx["@graph"] if e["type"] == "Agent")
    spdx["@graph"].append(dict(agent))
    spdx["@context"] = spdx["@context"].replace("3.0.1", "3.0.0")
    context, twice = spdx_bill.faults(json.dumps(spdx))
    assert "3.0.0" in context and twice == f"{agent['spdxId']} is the id of 2 elements"


def test_every_model_set_and_library_is_reached_from_the_lab_in_both_formats(root):
    spdx, cyclonedx = written(root)
    elements = {e["spdxId"]: e for e in spdx["@graph"] if "spdxId" in e}
    leads = {}
    for element in elements.values():
        if element["type"] == "Relationship":
            leads.setdefault(element["from"], []).extend(element["to"])
    bom = next(e for e in elements.values() if e["type"] == "software_Sbom")
    (start,) = bom["rootElement"]
    packages = {i for i, e in elements.items() if e["type"].endswith("Package")}
    assert packages <= reached(start, leads)
    depends = {d["ref"]: d.get("dependsOn", []) for d in cyclonedx["dependencies"]}
    assert {c["bom-ref"] for c in cyclonedx["components"]} <= reached("lab", depends)


def test_the_lab_supplies_itself_its_models_and_its_data_in_both_formats(root):
    spdx, cyclonedx = written(root)
    (lab,) = [e["spdxId"] for e in spdx["@graph"] if e["type"] == "Organization"]
    kinds = ("ai_AIPackage", "dataset_DatasetPackage")
    assert {e["suppliedBy"] for e in spdx["@graph"] if e["type"] in kinds} == {lab}
    parts = [c for c in cyclonedx["components"] if c["type"] != "library"]
    suppliers = {c["supplier"]["name"] for c in (*parts, cyclonedx["metadata"]["component"])}
    assert suppliers == {bill_facts.gather(root, "tiny").supplier}


def reached(start, leads):
    found, waiting = set(), [start]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += leads.get(one, [])
    return found


def of_kind(bill, kind):
    return next(c for c in bill["components"] if c["type"] == kind)


CYCLONEDX_CHANGES = {
    "another version": (lambda b: b.update(specVersion="1.5"), "specVersion 1.6"),
    "an unknown property": (lambda b: b.update(colour="red"), "schema"),
    "an unknown approach": (
        lambda b: of_kind(b, "machine-learning-model")["modelCard"]["modelParameters"].update(
            approach={"type": "magic"}
        ),
        "schema",
    ),
    "a hash of a wrong length": (
        lambda b: of_kind(b, "data")["hashes"][0].update(content="abc"),
        "schema",
    ),
    "no hash": (lambda b: of_kind(b, "data").pop("hashes"), "has no SHA-256"),
    "no data": (lambda b: of_kind(b, "data").pop("data"), "says nothing of its data"),
    "no model card": (
        lambda b: of_kind(b, "machine-learning-model").pop("modelCard"),
        "has no model card",
    ),
    "no licence": (lambda b: of_kind(b, "machine-learning-model").pop("licenses"), "no licence"),
    "a licence in words": (
        lambda b: of_kind(b, "data").update(licenses=[{"expression": "MIT AND Foo-1.0"}]),
        "no SPDX expression",
    ),
    "data that is not listed": (
        lambda b: of_kind(b, "machine-learning-model")["modelCard"]["modelParameters"].update(
            datasets=[{"ref": "data:none"}]
        ),
        "refers to data:none",
    ),
    "two of one name": (lambda b: b["components"].append(dict(b["components"][0])), "schema"),
    "a dependency on nothing": (
        lambda b: b["dependencies"].append({"ref": "none"}),
        "refers to none",
    ),
}


@pytest.mark.parametrize("name", CYCLONEDX_CHANGES)
def test_what_is_wrong_with_a_cyclonedx_bill_is_named(root, name):
    change, fault = CYCLONEDX_CHANGES[name]
    _, cyclonedx = written(root)
    change(cyclonedx)
    assert fault in " ".join(cyclonedx_bill.faults(json.dumps(cyclonedx)))


def test_components_without_a_reference_are_not_taken_for_one(root):
    _, cyclonedx = written(root)
    cyclonedx["components"] += [{"type": "library", "name": name} for name in ("a", "b")]
    assert cyclonedx_bill.faults(json.dumps(cyclonedx)) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"@context": "x"}', '{"bomFormat": "other"}'])
def test_a_file_that_is_no_bill_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(LabError):
        bills.faults(tmp_path / "x.json")


def test_a_missing_fact_is_said_and_leaves_no_bill_of_an_earlier_run(root):
    paths = bills.write(root, "tiny")
    (root / "data_cards/udhr/croissant.json").unlink()
    assert "moxin-lab cards write udhr" in bills.renew(root, "tiny")
    assert not any(path.exists() for path in paths)


def test_a_card_s_broken_croissant_file_is_named(root):
    path = root / "data_cards/udhr/croissant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "identifier": None}))
    with pytest.raises(LabError, match=r"udhr.croissant\.json is not as"):
        bill_facts.gather(root, "tiny")


def test_the_page_links_models_to_stages_and_data_to_cards(root):
    out = bills.write(root, "tiny")[0].parent.parent
    shown = bills_page.values(out, [], {"conversations": "data-conversations.html"})
    model = next(m for m in shown["models"] if m["name"] == "pretrained")
    assert model["trained_on"] == [("conversations", "data-conversations.html")]
    assert model["licence"] == bill_facts.LICENCE and model["sha256"] == DIGEST
    assert {d["name"]: d["use"] for d in shown["data"]} == {
        "conversations": "training",
        "udhr": "evaluation",
    }


def test_the_command_writes_and_checks_bills(root, capsys):
    for folder in ("notebooks", "moxin_lab"):
        (root / folder).mkdir()
    assert cli.main(["--root", str(root), "bills", "write"]) == 0
    paths = sorted(map(str, (root / "reports/tiny/bills").iterdir()))
    assert cli.main(["bills", "check", *paths]) == 0
    bill = json.loads((root / "reports/tiny/bills/lab.cdx.json").read_text())
    of_kind(bill, "data").pop("hashes")
    write_json(root / "bad.json", bill)
    assert cli.main(["bills", "check", str(root / "bad.json")]) == 1
    assert "has no SHA-256" in capsys.readouterr().out
    assert cli.main(["bills", "check"]) == 1
