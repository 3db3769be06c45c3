"""The MOF evaluator applies the Model Openness Tool's rules, on entries written for these tests
and, where they are present, on the tool's own fixtures.
"""

import copy
import json
import os
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab.openness import mof, mof_entry, mof_evidence

FIXTURES = Path(__file__).parent / "fixtures"
BENCHMARKS = os.environ.get("MOXIN_BENCHMARKS")
MOT_FIXTURES = sorted((Path(BENCHMARKS) / "mof" / "fixtures").glob("*.yml")) if BENCHMARKS else []
CLASS_3 = [
    "Model architecture",
    "Model parameters (Final)",
    "Technical report",
    "Evaluation results",
    "Model card",
    "Data card",
]
CLASS_2 = ["Training code", "Inference code", "Evaluation code", "Evaluation data"]
CLASS_1 = [
    "Datasets",
    "Data preprocessing code",
    "Model parameters (Intermediate)",
    "Research paper",
]


def entry(names, licence="OpenMDW-1.0", **licences):
    components = [
        {"name": name, "license": licence} if licence else {"name": name} for name in names
    ]
    return {
        "framework": {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"},
        "release": {
            "name": "made up",
            "producer": "a test",
            "license": {k: {"name": v} for k, v in licences.items()},
            "components": components,
        },
    }


def result(names, licence="OpenMDW-1.0", **licences):
    return mof.evaluate_entry(mof.check(entry(names, licence, **licences)))


def test_catalogue_has_seventeen_components_in_three_cumulative_classes():
    facts = mof.catalogue()["components"]
    required = {
        number: {fact["name"] for fact in facts if fact["class"] == number and fact["required"]}
        for number in (1, 2, 3)
    }
    assert len({fact["id"] for fact in facts}) == len({fact["name"] for fact in facts}) == 17
    assert required == {3: set(CLASS_3), 2: set(CLASS_2), 1: set(CLASS_1)}


@pytest.mark.parametrize(
    ("names", "expected_class", "progress"),
    [
        ([], 0, (0, 0, 0)),
        (CLASS_3[:3], 0, (50, 0, 0)),
        (CLASS_3, 3, (100, 60, 6 / 14 * 100)),
        (CLASS_3 + CLASS_2, 2, (100, 100, 10 / 14 * 100)),
        (CLASS_3 + CLASS_2 + CLASS_1, 1, (100, 100, 100)),
        (CLASS_2 + CLASS_1, 0, (None, 0, 0)),
    ],
)
def test_classes_build_on_each_other_and_progress_stops_at_the_first_unmet(
    names, expected_class, progress
):
    evaluation = result(names)
    assert evaluation.mof_class == expected_class
    three, two, one = progress
    if three is not None:
        assert evaluation.progress(3) == pytest.approx(three)
    assert evaluation.progress(2) == pytest.approx(two)
    assert evaluation.progress(1) == pytest.approx(one if evaluation.progress(2) == 100 else 0)


@given(
    st.sets(st.sampled_from([fact["name"] for fact in mof.catalogue()["components"]])), st.data()
)
def test_publishing_one_more_open_component_never_lowers_class_or_progress(names, data):
    more = data.draw(st.sampled_from([fact["name"] for fact in mof.catalogue()["components"]]))
    before, after = result(sorted(names)), result(sorted(names | {more}))
    assert all(after.progress(number) >= before.progress(number) for number in (1, 2, 3))
    assert (
        0
        <= min(after.progress(number) for number in (1, 2, 3))
        <= max(after.progress(n) for n in (1, 2, 3))
        <= 100
    )
    assert (before.mof_class or 4) >= (after.mof_class or 4)


def test_paper_replaces_the_technical_report_in_every_class():
    names = [name for name in CLASS_3 + CLASS_2 + CLASS_1 if name != "Technical report"]
    evaluation = result(names)
    assert [evaluation.progress(number) for number in (3, 2, 1)] == [100, 100, 100]
    assert evaluation.mof_class == 1
    assert "Research paper" in evaluation.classes[0].counted and not evaluation.classes[0].missing


def test_paper_without_an_open_licence_replaces_nothing_and_is_named_as_the_obstacle():
    made = entry(CLASS_3[:2] + CLASS_3[3:] + ["Research paper"])
    made["release"]["components"][-1]["license"] = "CC-BY-NC-4.0"
    evaluation = mof.evaluate_entry(mof.check(made))
    assert evaluation.mof_class == 0 and evaluation.classes[0].invalid == ("Research paper",)
    assert any("Research paper an open licence" in line for line in mof.next_steps(evaluation))


def test_optional_components_never_change_progress():
    optional = ["Sample model outputs", "Supporting libraries and tools", "Model metadata"]
    assert result(CLASS_3 + optional).classes == result(CLASS_3).classes


@pytest.mark.parametrize(
    ("component", "licences", "expected", "source"),
    [
        ({"license": "MIT"}, {"code": "Apache-2.0", "distribution": "ISC"}, "MIT", "component"),
        ({}, {"code": "Apache-2.0", "distribution": "ISC"}, "Apache-2.0", "release.license.code"),
        ({}, {"data": "CC0-1.0", "distribution": "ISC"}, "ISC", "release.license.distribution"),
        ({}, {"code": None, "distribution": "ISC"}, "ISC", "release.license.distribution"),
        ({"license": ""}, {"code": "Apache-2.0", "distribution": "ISC"}, "", "component"),
        ({}, {}, "", ""),
    ],
)
def test_licence_is_the_components_own_then_its_types_then_the_distributions(
    component, licences, expected, source
):
    made = entry(["Training code"], licence=None, **licences)
    made["release"]["components"][0].update(component)
    found = next(
        c for c in mof.evaluate_entry(mof.check(made)).components if c.name == "Training code"
    )
    assert (found.licence, found.licence_from) == (expected, source)
    assert found.status == ("included" if expected else "unlicensed")


@pytest.mark.parametrize(
    ("name", "licence", "status", "appropriate"),
    [
        ("Training code", "Apache-2.0", "included", True),
        ("Training code", "BSD-3-Clause", "included", False),
        ("Model parameters (Final)", "Apache-2.0", "included", False),
        ("Model parameters (Final)", "CDLA-Permissive-2.0", "included", True),
        ("Datasets", "PDDL-1.0", "invalid", True),
        ("Datasets", "CC-BY-4.0", "included", False),
        ("Model card", "CC-BY-4.0", "included", True),
        ("Model card", "CC-BY-NC-4.0", "invalid", False),
        ("Model card", "OpenMDW-1.1", "invalid", False),
        ("Model card", "unlicensed", "unlicensed", False),
    ],
)
def test_open_licences_count_and_unusual_ones_warn(name, licence, status, appropriate):
    evaluation = result([name], licence)
    found = next(component for component in evaluation.components if component.name == name)
    assert (found.status, found.type_appropriate) == (status, appropriate)
    unusual = status == "included" and not appropriate
    unknown_to_the_tool = licence in ("PDDL-1.0", "OpenMDW-1.1")
    assert bool(evaluation.warnings) == (unusual or unknown_to_the_tool)


def test_misspelt_component_is_refused_with_the_right_name():
    with pytest.raises(mof.MofError, match="did you mean 'Data card'"):
        mof.check(entry(["Data Card"]))


def test_component_listed_twice_is_refused():
    with pytest.raises(mof.MofError, match="listed 2 times"):
        mof.check(entry(["Data card", "Data card"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("framework"), "framework"),
        (lambda e: e["release"].pop("producer"), "producer"),
        (lambda e: e["release"].update(name=""), "release.name"),
        (lambda e: e["release"].update(type="text"), "release.type"),
        (lambda e: e["framework"].update(date="15 December"), "framework.date"),
        (lambda e: e["release"]["components"].append({"license": "MIT"}), "release.components.1"),
        (lambda e: e["release"]["license"].update(code="MIT"), "release.license.code"),
    ],
)
def test_broken_entry_is_refused_with_the_place(change, message):
    made = copy.deepcopy(entry(["Data card"]))
    change(made)
    with pytest.raises(mof.MofError, match=re.escape(message)):
        mof.check(made)


def test_unquoted_date_is_read_as_text(tmp_path):
    path = tmp_path / "MOF.yml"
    path.write_text(
        yaml.safe_dump(entry(CLASS_3)).replace("'2024-12-15'", "2024-12-15"), encoding="utf-8"
    )
    assert mof.evaluate(path).mof_class == 3


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"[" * 5000, b"release: " + b"9" * 5000, b"\xff\xfe", b"just text", b"", b"- 1\n"],
)
def test_malformed_file_gives_a_clear_error(tmp_path, content):
    path = tmp_path / "MOF.yml"
    path.write_bytes(content)
    with pytest.raises(mof.MofError, match=r"MOF\.yml"):
        mof.evaluate(path)
    with pytest.raises(mof.MofError, match="does not exist"):
        mof.evaluate(tmp_path / "absent.yml")


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yml")), ids=lambda path: path.stem)
def test_committed_fixture_evaluates_to_what_its_name_says(path):
    check_fixture(path)


@pytest.mark.skipif(
    not MOT_FIXTURES,
    reason="MOXIN_BENCHMARKS is unset or has no mof/fixtures; .ci/run sets it where it can",
)
@pytest.mark.parametrize("path", MOT_FIXTURES, ids=lambda path: path.stem)
def test_agrees_with_the_model_openness_tools_own_fixture(path):
    check_fixture(path)


@pytest.mark.skipif(
    not MOT_FIXTURES,
    reason="MOXIN_BENCHMARKS is unset or has no mof/; .ci/run sets it where the files exist",
)
def test_catalogue_holds_the_model_openness_tools_components_licences_and_enumerations():
    upstream = Path(BENCHMARKS) / "mof"
    settings = yaml.safe_load((upstream / "mof.settings.yml").read_text(encoding="utf-8"))[
        "components"
    ]
    fields = ("id", "name", "content_type", "class", "required")
    ours = {tuple(fact[field] for field in fields) for fact in mof.catalogue()["components"]}
    assert ours == {tuple(component[field] for field in fields) for component in settings}
    spdx = json.loads((upstream / "licenses.json").read_text(encoding="utf-8"))["licenses"]
    assert set(mof.catalogue()["open_licences"]["osi_or_fsf"]) == {
        entry["licenseId"]
        for entry in spdx
        if entry.get("isOsiApproved") or entry.get("isFsfLibre")
    }
    made_for = json.loads((upstream / "mof-licenses.json").read_text(encoding="utf-8"))["licenses"]
    for content_type, identifiers in mof.catalogue()["type_appropriate"].items():
        wanted = {entry["licenseId"] for entry in made_for if content_type in entry["ContentType"]}
        assert set(identifiers) == wanted
    release = json.loads((upstream / "mof_schema.json").read_text(encoding="utf-8"))["properties"][
        "release"
    ]["properties"]
    for field in ("type", "architecture", "treatment"):
        assert mof.catalogue()["schema"][field] == release[field]["enum"]


def check_fixture(path):
    """Progress and counts as the file name states them, read the way the tool's own test script
    reads them.

    That script sets the progress of a class to 0 while a lower class is not met (the names were
    made before that rule), and skips the count of type-appropriate licences (made before upstream
    mended it); so does this.
    """
    match = re.search(
        r"_C1_(\d+)%-C2_(\d+)%-C3_(\d+)%_(\d+)C_(\d+)G_(\d+)L_(\d+)V_(\d+)I_", path.stem
    )
    assert match, f"{path.name} does not state what to expect"
    one, two, three, components, global_licences, own_licences, valid, invalid = map(
        int, match.groups()
    )
    if three < 100:
        two = 0
    if two < 100:
        one = 0
    evaluation, release = mof.evaluate(path), mof.load(path)["release"]
    assert [round(evaluation.progress(number)) for number in (1, 2, 3)] == [one, two, three]
    states = [component.status for component in evaluation.components]
    assert (len(release["components"]), len(release["license"])) == (components, global_licences)
    assert sum("license" in component for component in release["components"]) == own_licences
    assert (states.count("included"), states.count("invalid")) == (valid, invalid)


def test_text_report_states_class_progress_licence_source_and_the_next_step():
    text = mof.format_text(
        result(CLASS_3[:-1], licence=None, code="MIT", distribution="Apache-2.0")
    )
    assert "Unclassified" in text and "83.3 %" in text
    assert "release.license.code" in text and "release.license.distribution" in text
    assert "for Class III - Open Model:\n    add Data card" in text
    assert "warning: Model parameters (Final): Apache-2.0" in text


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("type: language", "type: text", 6, "release.type: 'text' is not one of"),
        ("date: '2026-01-02'", "date: 2 January", 7, "release.date: '2 January' is not a 'date'"),
        ("producer: p", "maker: p", 4, "release: 'producer' is a required property"),
        ("- name: Data card", "- name: Data Card", 13, "did you mean 'Data card'?"),
        ("- name: Data card", "- name: Model card", 13, "'Model card' is listed 2 times"),
        ("- name: Data card", "- title: Data card", 13, "'name' is a required property"),
        ("code: {name: MIT}", "code: MIT", 10, "release.license.code: 'MIT' is not of type"),
        ("license: MIT", "license: [MIT]", 14, "release.components.1.license"),
    ],
)
def test_an_error_of_a_file_names_the_line(tmp_path, old, new, line, said):
    text = """\
framework: {name: Model Openness Framework, version: '1.0', date: '2024-12-15'}
# a comment

release:
  name: made up
  type: language
  date: '2026-01-02'
  producer: p
  license:
    code: {name: MIT}
  components:
  - name: Model card
  - name: Data card
    license: MIT
"""
    path = tmp_path / "MOF.yml"
    path.write_text(text, encoding="utf-8")
    assert mof_entry.component_lines(path) == {"Model card": 12, "Data card": 13}
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(mof.MofError, match=rf"line {line}, .*{re.escape(said)}"):
        mof.evaluate(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["components"][0].update(licence="CC-BY-NC-4.0"), "did you mean 'license'?"),
        (lambda r: r["components"][0].update(License="MIT"), "did you mean 'license'?"),
        (lambda r: r["components"][0].update({"component-path": "x"}), "'component_path'?"),
        (lambda r: r.update(licence={}), "release: the tool does not read 'licence'"),
        (lambda r: r.update(trainment="x"), "did you mean 'treatment'?"),
        (lambda r: r["license"].update(documents={}), "it reads distribution, code, data"),
        (lambda r: r["license"].update(weights={}), "does not read 'weights'"),
        (lambda r: r["license"].update(code={"nmae": "MIT"}), "release.license.code: the tool"),
    ],
)
def test_a_field_that_the_tool_passes_over_is_said_and_counts_for_nothing(change, said):
    plain, slip = entry(CLASS_3), entry(CLASS_3)
    change(slip["release"])
    before, after = (mof.evaluate_entry(mof.check(one)) for one in (plain, slip))
    (warning,) = set(after.warnings) - set(before.warnings)
    assert said in warning and "counts for nothing" in warning
    assert (after.mof_class, after.num_included) == (before.mof_class, before.num_included)


def test_fields_that_others_add_are_no_slips():
    more = entry(CLASS_3)
    more["release"].update(repository="https://example.org", huggingface="x", note="y")
    assert mof.evaluate_entry(mof.check(more)).warnings == result(CLASS_3).warnings


def test_text_from_a_file_cannot_act_on_the_terminal():
    hostile = entry(CLASS_3)
    hostile["release"].update(name="M\x1b[2J\r\u202eX", producer="P\nforged: Class I")
    hostile["release"]["components"][0]["license"] = "MIT\x1b[31m"
    text = mof.format_text(mof.evaluate_entry(mof.check(hostile)))
    assert not re.search(r"[\x1b\r\u202e]", text)
    assert "M\\x1b[2J\\r\\u202eX (P\\nforged: Class I)" in text.splitlines()[0]


def test_a_licence_newer_than_the_tools_list_is_said_and_not_guessed():
    evaluation = result(CLASS_3, licence="OpenMDW-1.1")
    assert evaluation.num_included == 0
    assert len(evaluation.warnings) == len(CLASS_3)
    for warning in evaluation.warnings:
        assert "OpenMDW-1.1, announced on 2026-05-28, is not yet in the tool's list" in warning
    assert result(CLASS_3, licence="OpenMDW-1.0").mof_class == 3


def test_a_licence_that_the_tool_calls_fitting_but_not_open_is_explained():
    (warning,) = result(["Datasets"], licence="PDDL-1.0").warnings
    assert "made for data but not open, so it does not count" in warning


@pytest.mark.parametrize(
    "wrong",
    [
        [7] * 99_000,
        # As many as the limit on a file's parts lets through.
        [{"name": i} for i in range(33_000)],
        [{"name": "x" * 50} for _ in range(33_000)],
        [{"name": f"{i} " + "x" * 3_000_000} for i in range(17)],
    ],
    ids=["numbers", "names of numbers", "a name again and again", "names of megabytes"],
)
def test_a_list_of_any_number_of_wrong_components_gives_a_short_error_within_a_second(wrong):
    faulty = entry([])
    faulty["release"]["components"] = wrong
    began = time.process_time()
    with pytest.raises(mof.MofError) as caught:
        mof.check(faulty)
    assert time.process_time() - began < 1
    lines = str(caught.value).splitlines()[1:]
    assert 1 <= len(lines) <= 20 and max(map(len, lines)) < 500


def test_names_in_an_error_are_quoted_to_80_letters():
    with pytest.raises(mof.MofError) as caught:
        mof.check(entry(["y" * 80, "z" * 81]))
    quoted = ["y" * 80, "z" * 80 + "..."]
    assert [line.split("'")[1] for line in str(caught.value).splitlines()[1:]] == quoted


def test_evidence_of_any_number_of_wrong_components_gives_a_short_error(tmp_path):
    lines = [f"  {'z' * 30}{i}: present" for i in range(49_000)]
    sidecar = tmp_path / "MOF.evidence.yml"
    sidecar.write_text("evidence:\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(mof.MofError, match="has no mapping with a text `status`") as caught:
        mof_evidence.evidence(tmp_path / "MOF.yml")
    assert len(str(caught.value).splitlines()) == 1 + 20 + 20


def test_evidence_sidecar_names_only_known_components(tmp_path):
    path = tmp_path / "MOF.yml"
    with pytest.raises(mof.MofError, match=r"MOF\.evidence\.yml does not exist"):
        mof_evidence.evidence(path)
    sidecar = tmp_path / "MOF.evidence.yml"
    sidecar.write_text("evidence: {Data Card: {status: present}}", encoding="utf-8")
    with pytest.raises(mof.MofError, match="did you mean 'Data card'"):
        mof_evidence.evidence(path)
    sidecar.write_text("just text", encoding="utf-8")
    with pytest.raises(mof.MofError, match="cannot be read as evidence"):
        mof_evidence.evidence(path)


@pytest.mark.parametrize(
    ("licence", "meant"),
    [
        ("apache-2.0", "'Apache-2.0'"),
        ("Apache 2", "'Apache-2.0'"),
        ("Apache License, Version 2.0", "'Apache-2.0'"),
        ("MIT OR Apache-2.0", "'MIT' or 'Apache-2.0'"),
        ("(mit and CC BY 4.0)", "'MIT' or 'CC-BY-4.0'"),
        ("GPLv3", "'GPL-3.0'"),
        ("Apach-2.0", "'Apache-2.0'"),
    ],
)
def test_a_licence_that_is_nearly_one_gets_did_you_mean_and_still_does_not_count(licence, meant):
    evaluation = result(CLASS_3, licence=licence)
    assert evaluation.num_included == 0
    (line,) = evaluation.warnings  # one for all components with this licence
    assert line.startswith(f"{CLASS_3[0]}, ") or CLASS_3[0] in line
    assert line.endswith(
        f"{licence!r} is no identifier of one SPDX licence, so it does not count; "
        f"did you mean {meant}?"
    )
    assert f"warning: {line}" in mof.format_text(evaluation)


@pytest.mark.parametrize(
    "licence", ["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "llama2", "other", "-", "?"]
)
def test_a_licence_that_is_not_open_is_not_taken_for_one_that_is(licence):
    assert result(CLASS_3, licence=licence).warnings == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: &a [*a]", "contains itself"),
        ("&a {release: *a, framework: *a}", "contains itself"),
        (
            "a0: &a [x]\n"
            + "\n".join(
                f"a{i}: &a{i} [{','.join([f'*a{i - 1}' if i > 1 else '*a'] * 9)}]"
                for i in range(1, 12)
            ),
            "more than 100,000 parts",
        ),
        ("[" * 5000, "nested too deeply"),
        ("# x\n" * 12_500_000, "larger than 4,194,304 bytes"),
        ("release: {}\nrelease: {}", "'release' is given twice in line 2"),
        ("release:\n  license: {}\n  license: {}", "'license' is given twice in line 3"),
    ],
    ids=["recursion", "recursive map", "exponential", "brackets", "comments", "twice", "inside"],
)
def test_a_hostile_file_is_refused_quickly_by_the_limits(tmp_path, content, reason):
    (tmp_path / "MOF.yml").write_text(content)
    began = time.process_time()
    with pytest.raises(mof.MofError, match=rf"MOF\.yml.*{reason}"):
        mof.evaluate(tmp_path / "MOF.yml")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "content",
    [
        "evidence: {Data card: present}",
        "evidence: {Data card: [present]}",
        "evidence: {Data card: {}}",
        "evidence: {Data card: {status: 3}}",
        "evidence: {7: {status: present}}",
        "evidence: {Data card: {status: present}, Data card: {status: absent}}",
        "evidence: &a {Data card: *a}",
    ],
)
def test_evidence_of_another_form_is_refused_with_its_file(tmp_path, content):
    (tmp_path / "MOF.evidence.yml").write_text(content)
    with pytest.raises(mof.MofError, match=r"MOF\.evidence\.yml"):
        mof_evidence.evidence(tmp_path / "MOF.yml")


def test_a_message_does_not_quote_a_whole_file(tmp_path):
    (tmp_path / "MOF.yml").write_text("- " + "x" * 1_000_000)
    with pytest.raises(mof.MofError) as caught:
        mof.evaluate(tmp_path / "MOF.yml")
    assert len(str(caught.value)) < 1500
