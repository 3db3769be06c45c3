"""A scale outside the package is the scale that it extends, but for what its file states."""

import os

import pytest

from moxin_lab import scales
from moxin_lab.lab import cache


@pytest.fixture(autouse=True)
def no_folders_of_the_machine(monkeypatch):
    # set before it is removed, so that monkeypatch also removes what a test leaves in it
    monkeypatch.setenv(scales.FOLDERS_VARIABLE, "")


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_file_does_not_state_is_as_in_the_scale_it_extends(tmp_path):
    text = "extends: tiny\npretraining:\n  warmup_steps: 3\nreasoning:\n  grpo: {steps: 2}\n"
    quick, tiny = scales.load(write(tmp_path, "quick", text)), scales.load("tiny")
    assert (quick.name, quick.decides_as) == ("quick", "tiny")
    assert quick.pretraining.warmup_steps == 3 and quick.reasoning.grpo.steps == 2
    expected = tiny.model_dump() | {"name": "quick"}
    expected["pretraining"]["warmup_steps"] = 3
    expected["reasoning"]["grpo"]["steps"] = 2
    assert quick.model_dump() == expected


def test_mappings_are_merged_lists_are_replaced_and_replace_takes_a_mapping_as_a_whole(tmp_path):
    text = """
        extends: tiny
        data: {sources: [help_pages]}
        reasoning:
          families: {gcd: {max_value: 12}}
          new_families: !replace {lcm: {max_value: 9}}
    """
    scale = scales.load(write(tmp_path, "other", text))
    assert scale.data.sources == ("help_pages",)
    assert set(scale.reasoning.families) == {"simple_equations", "gcd"}
    assert scale.reasoning.new_families == {"lcm": {"max_value": 9}}


def test_a_scale_extends_another_one_outside_the_package_by_name_and_by_relative_path(tmp_path):
    write(tmp_path / "shared", "first", "extends: small\ndata: {minimum_characters: 1}\n")
    write(tmp_path, "second", "extends: shared/first.yaml\ndata: {minimum_characters: 2}\n")
    third = scales.load(write(tmp_path, "third", "extends: second\ndata: {heldout_share: 0.5}\n"))
    assert (third.data.minimum_characters, third.data.heldout_share) == (2, 0.5)
    assert (third.name, third.decides_as) == ("third", "small")


def test_a_name_is_searched_in_the_folders_of_the_variable_and_then_in_the_repository(
    tmp_path, monkeypatch
):
    write(tmp_path / "scales", "mine", "extends: tiny\ndata: {minimum_characters: 1}\n")
    assert scales.load("mine", tmp_path).data.minimum_characters == 1
    write(tmp_path / "elsewhere", "mine", "extends: tiny\ndata: {minimum_characters: 2}\n")
    folders = [str(tmp_path / "none"), str(tmp_path / "elsewhere")]
    monkeypatch.setenv(scales.FOLDERS_VARIABLE, os.pathsep.join(folders))
    assert scales.load("mine", tmp_path).data.minimum_characters == 2


def test_a_scale_in_use_is_found_by_its_name_alone(tmp_path):
    path = write(tmp_path / "anywhere", "mine", "extends: tiny\ndata: {minimum_characters: 7}\n")
    with pytest.raises(scales.ScaleError, match="unknown scale 'mine'"):
        scales.load("mine", tmp_path)
    assert scales.use(path).name == "mine"
    assert scales.load("mine", tmp_path).data.minimum_characters == 7
    assert scales.use("mine", tmp_path) == scales.load(path)
    assert os.environ[scales.FOLDERS_VARIABLE] == str(path.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: tiny\ndata: {minimum_charakters: 1}\n", "data.minimum_charakters"),
        ("extends: tiny\nnonsense: 1\n", "nonsense"),
        ("extends: tiny\ndata: {heldout_share: 2}\n", "data.heldout_share"),
        ("extends: tiny\ndata: 3\n", "data"),
        ("extends: huge\n", "unknown scale 'huge'"),
        ("extends: none.yaml\n", "there is no scale file .*none.yaml"),
        ("data: {minimum_characters: 1}\n", "needs `extends`"),
        ("extends: [tiny]\n", "needs `extends`"),
        ("extends: tiny\ndecides_as: full\n", "decides_as cannot be set"),
        ("extends: tiny\nname: other\n", "name cannot be set"),
        ("extends: tiny\ndata: !replace 3\n", "mapping"),
        ("- tiny\n", "not a mapping"),
        ("extends: bad\n", "circular: bad.yaml -> bad.yaml"),
        ("extends: {\n", "bad.yaml"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name_with_what_is_wrong(tmp_path, text, message):
    path = write(tmp_path, "bad", text)
    with pytest.raises(scales.ScaleError, match=message) as caught:
        scales.load(path)
    assert str(path) in str(caught.value)


def test_a_recipe_has_three_phases_and_benchmark_sources_are_sources(tmp_path):
    phase = "{name: a, steps: 1, sequence_length: 2, mixture: {en: 100}}"
    two = f"extends: tiny\npretraining: {{phases: [{phase}]}}"
    with pytest.raises(scales.ScaleError, match=r"pretraining\.phases"):
        scales.load(write(tmp_path, "two", two))
    with pytest.raises(scales.ScaleError, match="benchmark_sources mmlu are not among the sources"):
        scales.load(write(tmp_path, "more", "extends: tiny\ndata: {benchmark_sources: [mmlu]}"))


def test_a_circle_of_files_and_a_fault_in_the_extended_file_name_the_file_concerned(tmp_path):
    write(tmp_path, "one", "extends: two\n")
    two = write(tmp_path, "two", "extends: one\n")
    with pytest.raises(scales.ScaleError, match=r"circular: two.yaml -> one.yaml -> two.yaml"):
        scales.load(two)
    base = write(tmp_path, "base", "extends: tiny\nmodel: {depth: 3}\n")
    with pytest.raises(scales.ScaleError, match=r"model\.depth") as caught:
        scales.load(write(tmp_path, "top", "extends: base\n"))
    assert str(caught.value).startswith(f"{base}:")


def phases(last):
    one = "{name: a, steps: 1, sequence_length: 2, mixture: {en: 100}}"
    return f"phases: [{one}, {one}, {{name: last, steps: 1, sequence_length: 2, {last}}}]"


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("{}", "'last': mixture needs at least one pool, .*it is empty"),
        ("{en: 60, zh: 30}", "'last': the shares of mixture .* must sum to 100; they sum to 90"),
        ("{en: 0.5, zh: 0.5}", "must sum to 100; they sum to 1"),
        ("{en: 120, zh: -20}", "each above 0 percent; it has {'en': 120.0, 'zh': -20.0}"),
        ("{en: 100, zh: 0}", "above 0 percent; it has {'zh': 0.0}"),
        ("{en: .nan}", "above 0 percent; it has {'en': nan}"),
    ],
)
def test_a_mixture_that_is_not_a_hundred_percent_of_pools_is_refused(tmp_path, mixture, message):
    text = f"extends: tiny\npretraining: {{{phases('mixture: ' + mixture)}}}"
    with pytest.raises(scales.ScaleError, match=message):
        scales.load(write(tmp_path, "bad", text))


def test_one_switch_puts_benchmark_training_sets_into_phase_3_and_takes_them_out():
    full = scales.load("full").pretraining
    assert full.benchmark_training_sets and "hellaswag-train" in full.phases[2].mixture
    assert not scales.load("tiny").pretraining.benchmark_training_sets


def test_the_ablation_of_the_full_scale_without_benchmark_sets_is_one_line(tmp_path):
    text = "extends: full\npretraining: {benchmark_training_sets: false}"
    without = scales.load(write(tmp_path, "without", text)).pretraining
    benchmarks = set(scales.load("full").data.benchmark_sources)
    assert not benchmarks & {name for phase in without.phases for name in phase.mixture}
    assert benchmarks < set(without.phases[2].benchmark_mixture)


def test_the_switch_without_a_mixture_for_it_is_refused(tmp_path):
    text = "extends: tiny\npretraining: {benchmark_training_sets: true}"
    with pytest.raises(scales.ScaleError, match="no phase has a benchmark_mixture: state one"):
        scales.load(write(tmp_path, "bad", text))


@pytest.mark.parametrize("name", ["tiny", "full", "released", "9th", "two words"])
def test_a_file_cannot_take_a_name_that_would_mix_its_results_with_others(tmp_path, name):
    with pytest.raises(scales.ScaleError, match="is named after its file"):
        scales.load(write(tmp_path, name, "extends: tiny\n"))


@pytest.mark.parametrize("name", scales.SCALES)
def test_the_scales_of_the_package_decide_as_themselves(name):
    assert scales.load(name).decides_as == name == scales.use(name).name


@pytest.mark.parametrize("name", ["tiny", "small", "full"])
def test_mixtures_draw_from_sources_or_from_languages_that_no_source_is_named_after(name):
    scale = scales.load(name)
    drawn = {pool for phase in scale.pretraining.phases for pool in phase.mixture}
    languages = drawn - set(scale.data.source_names)
    assert languages <= {"en", "zh", "ja", "ko", "code"}
    assert name == "full" or languages == {"en", "zh", "ja", "ko", "code"}


def test_the_small_scale_reads_the_corpus_that_a_command_builds():
    assert scales.load("small").data.source_names == (cache.CORPUS, "conversations")
