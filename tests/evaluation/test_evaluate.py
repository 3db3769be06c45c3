"""`moxin-lab evaluate`: any checkpoint, any task, and what is refused before a model is loaded."""

import json
import shutil

import pytest
import torch
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from moxin_lab import cli
from moxin_lab.evaluation import checkpoints, named_tasks, result_files
from moxin_lab.evaluation.evaluate import evaluate
from moxin_lab.evaluation.harness import task_config
from moxin_lab.export import folders
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import gguf_tokenizer
from tests.evaluation.tiny import save_mistral

CHOICE = """
task: lab_capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 2.0, protocol: our own}
"""
CITIES = ["Paris", "Rome", "Oslo", "Cairo"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {letter: i for i, letter in enumerate(["</s>", *alphabet])}
    bytewise = Tokenizer(models.BPE(letters, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tasks(tmp_path):
    """A folder of one task, and its file of four items."""
    folder = tmp_path / "lab_tasks"
    folder.mkdir()
    (folder / "lab_capitals.yaml").write_text(CHOICE)
    rows = [
        {"question": f"The capital of land {i} is", "choices": CITIES, "label": i % 4}
        for i in (0, 0, 1, 2)
    ]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Loading a checkpoint fails the test."""
    monkeypatch.setattr(checkpoints, "load", lambda *a, **k: pytest.fail("the model was loaded"))


def test_a_yaml_without_include_runs_and_the_json_is_the_harnesss_own_with_ours(
    checkpoint, tasks, tmp_path, capsys
):
    out = tmp_path / "out.json"
    arguments = ["--model", str(checkpoint), "--include", str(tasks / "lab_capitals.yaml")]
    assert cli.main(["evaluate", *arguments, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "lab_capitals" in shown and "0.250" in shown and "our own" in shown
    written = json.loads(out.read_text())
    assert written["results"]["lab_capitals"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    samples = written["samples"]["lab_capitals"]
    assert [sample["doc"]["choices"] for sample in samples] == [CITIES] * 4
    assert all(len(sample["resps"]) == 4 and sample["doc_hash"] for sample in samples)
    ours = written["moxin_lab"]
    (row, _) = ours["scores"]
    assert (row["chance"], row["majority"], row["items"]) == (0.25, 0.5, 4)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["protocol"].startswith("lm-eval ") and "0 shots; acc; our own" in row["protocol"]
    assert set(ours["model"]["files"]) >= {"model.safetensors", "tokenizer.json", "config.json"}
    assert set(ours["tasks"]["lab_capitals"]["data"]) == {"capitals.jsonl"}
    assert str(tmp_path) not in out.read_text(), "no path of this machine is in the file"
    # With the folder, two shots and a limit; and hashes in place of words.
    arguments = ["--model", str(checkpoint), "--include", str(tasks), "--tasks", "lab_capitals"]
    more = ["--shots", "2", "--limit", "3", "--no-texts", "--json", str(out)]
    assert cli.main(["evaluate", *arguments, *more]) == 0
    again = json.loads(out.read_text())
    assert again["n-shot"]["lab_capitals"] == 2
    assert "first 3 of 4 items" in again["moxin_lab"]["scores"][0]["protocol"]
    assert "capital of land" not in out.read_text() and "Paris" not in json.dumps(again["samples"])
    kept = again["samples"]["lab_capitals"]
    assert [sample["doc_hash"] for sample in kept] == [sample["doc_hash"] for sample in samples[:3]]
    assert all("acc" in sample and len(sample["resps"]) == 4 for sample in kept)


def test_the_harnesss_own_adapter_gives_the_same_score(checkpoint, tasks):
    include = tasks / "lab_capitals.yaml"
    ours, theirs = (evaluate(checkpoint, [], include=include, engine=e) for e in ("lab", "hf"))
    assert [row["value"] for row in ours] == [row["value"] for row in theirs]


def refusal(capsys, *words):
    assert cli.main(["evaluate", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_lacks(
    checkpoint, tasks, tmp_path, no_model, capsys
):
    def copy(name, *without):
        folder = tmp_path / name
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(*without))
        return folder

    include = ("--include", tasks / "lab_capitals.yaml")
    for folder, reason in (
        (tmp_path / "nowhere", "there is no checkpoint"),
        (copy("a", "tokenizer*"), "has no tokenizer (tokenizer.json"),
        (copy("b", "config.json"), "has no config.json"),
        (copy("c", "*.safetensors"), "has no *.safetensors file"),
    ):
        assert reason in refusal(capsys, "--model", folder, *include)
    other = copy("d")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    assert "--engine hf does" in refusal(capsys, "--model", other, *include)
    small = copy("e")
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "the tokenizer of another model" in refusal(capsys, "--model", small, *include)


def test_a_task_that_cannot_be_scored_is_refused_before_the_model_is_loaded(
    checkpoint, tasks, no_model, capsys
):
    def changed(old, new, name="changed"):
        text = CHOICE.replace(old, new)
        assert text != CHOICE
        path = tasks / f"{name}.yaml"
        path.write_text(text)
        return "--include", path

    model = ("--model", checkpoint)
    items = tasks / "capitals.jsonl"
    good = items.read_text()
    # No gold answer: no such field, a place that is not there, an empty one, none at all.
    assert "item 0 has no gold answer" in refusal(
        capsys, *model, *changed("doc_to_target: label", "doc_to_target: answer")
    )
    bad = json.dumps({"question": "?", "choices": CITIES, "label": 4}) + "\n"
    items.write_text(good + bad)
    include = ("--include", tasks / "lab_capitals.yaml")
    assert "item 4 has no gold answer" in refusal(capsys, *model, *include)
    items.write_text(good.replace('"label": 1', '"label": -1'))
    assert "item 2 has no gold answer" in refusal(capsys, *model, *include)
    items.write_text(good.replace('"label": 1', '"label": null'))
    assert "item 2 has no gold answer" in refusal(capsys, *model, *include)
    items.write_text(good)
    written = CHOICE.replace("multiple_choice", "generate_until").replace(
        "[{metric: acc}, {metric: acc_norm}]", "[{metric: exact_match}]"
    )
    written = written.replace('doc_to_choice: "{{choices}}"\n', "").replace(
        "doc_to_target: label", 'doc_to_target: "{{solution}}"'
    )
    (tasks / "written.yaml").write_text(written)
    items.write_text(good.replace('"label": 0', '"label": 0, "solution": ""'))
    assert "doc_to_target gives ''" in refusal(capsys, *model, "--include", tasks / "written.yaml")
    items.write_text(good)
    # The file, its data, its functions.
    assert "there is no elsewhere.jsonl" in refusal(
        capsys, *model, *changed("capitals.jsonl", "elsewhere.jsonl")
    )
    assert "has no `task: NAME`" in refusal(
        capsys, *model, *changed("task: lab_capitals", "version: 1")
    )
    assert "cannot be read" in refusal(
        capsys, *model, *changed('"{{question}}"', "!function nowhere.prompt")
    )
    assert "cannot be read" in refusal(capsys, *model, *changed("output_type:", "output_type: ["))
    items.write_text("")
    assert "task lab_capitals" in refusal(capsys, *model, *include)


ODD_TASKS = {
    "no such field": ('doc_to_text: "{{question}}"', "doc_to_text: nothere", "is no field of the"),
    "no such metric": ("metric: acc}, ", "metric: nosuch}, ", "the harness has no metric nosuch"),
    "fewer shots than none": ("output_type:", "num_fewshot: -1\noutput_type:", "num_fewshot is -1"),
}


@pytest.mark.parametrize("name", ODD_TASKS)
def test_what_the_harness_would_meet_after_the_model_is_refused_before(tasks, name):
    old, new, reason = ODD_TASKS[name]
    text = CHOICE.replace(old, new)
    assert text != CHOICE
    (tasks / "odd.yaml").write_text(text)
    with pytest.raises(LabError, match=reason):
        named_tasks.load([], tasks / "odd.yaml")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"question": None}, "doc_to_text gives|cannot be asked"),
        ({"choices": "xy"}, "no list of texts"),
        ({"choices": ["x"]}, "nothing to choose from"),
    ],
)
def test_an_item_that_cannot_be_asked_is_named(tasks, changed, reason):
    rows = [{"question": "?", "choices": ["x", "y"], "label": 0, **changed}] * 2
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tasks / "capitals.jsonl").write_text(lines)
    text = CHOICE.replace('"{{question}}"', "question").replace('"{{choices}}"', "choices")
    assert text != CHOICE
    (tasks / "odd.yaml").write_text(text)
    with pytest.raises(LabError, match=f"item 0 .*({reason})"):
        named_tasks.load([], tasks / "odd.yaml")


@pytest.fixture
def small_harness(monkeypatch, tmp_path):
    """A harness of one task, in place of an index of thousands of files."""
    folder = tmp_path / "harness"
    folder.mkdir()
    (folder / "arc_easy.yaml").write_text(CHOICE.replace("lab_capitals", "arc_easy"))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(named_tasks, "_manager", lambda include, with_harness: manager)


def test_an_unknown_task_is_refused_with_what_is_near(
    checkpoint, tasks, no_model, small_harness, capsys
):
    model = ("--model", checkpoint)
    error = refusal(capsys, *model, "--include", tasks, "--tasks", "lab_capitls,arc_easy")
    assert "there is no task 'lab_capitls'" in error and "did you mean lab_capitals" in error
    error = refusal(capsys, *model, "--include", tasks, "--tasks", "lab_capitals,arc_easi")
    assert "there is no task 'arc_easi'" in error and "did you mean arc_easy" in error
    (tasks / "broken.yaml").write_text("task: [")
    error = refusal(capsys, *model, "--include", tasks, "--tasks", "broken")
    assert "broken.yaml cannot be read" in error
    assert "there is no such file or folder" in refusal(capsys, *model, "--include", "nowhere")
    assert "name a task" in refusal(capsys, *model)
    assert "there is no task file" in refusal(capsys, *model, "--tasks", "nowhere.yaml")


def test_a_set_that_is_not_here_says_how_to_get_it(
    checkpoint, no_model, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MOXIN_BENCHMARKS", raising=False)
    model = ("--model", checkpoint)
    assert "run `moxin-lab benchmarks fetch gsm8k`" in refusal(
        capsys, *model, "--tasks", "moxin_gsm8k"
    )
    assert "give --data FOLDER" in refusal(capsys, *model, "--tasks", "moxin_cloze_en")


def test_a_file_that_is_no_result_of_this_version_is_neither_read_nor_replaced(
    checkpoint, tasks, tmp_path, no_model, capsys
):
    out = tmp_path / "out.json"
    words = ("--model", checkpoint, "--include", tasks / "lab_capitals.yaml", "--json", out)
    for content, reason in (
        ({"moxin_lab": {"format": 99, "scores": []}}, "has format 99, and this version reads 1"),
        ({"results": {}}, "is not a results file of `moxin-lab evaluate`"),
        ([], "is not a results file"),
    ):
        out.write_text(json.dumps(content))
        assert reason in refusal(capsys, *words)
        assert json.loads(out.read_text()) == content
        assert reason in refusal(capsys, "--compare", out, out)
    out.write_text("{")
    assert "out.json" in refusal(capsys, *words)
    assert "there is no folder" in refusal(capsys, *words[:-1], tmp_path / "no" / "out.json")


@pytest.mark.parametrize(
    "content",
    [
        '{"samples": {}, "moxin_lab": {"format": 1, "scores": [{"task": "t"}]}}',
        '{"samples": {}, "moxin_lab": {"format": 1, "scores": ["x"]}}',
        '{"moxin_lab": {"format": 1, "scores": []}}',
        '{"samples": {"t": 1}, "moxin_lab": {"format": 1, "scores": []}}',
        '{"samples": {}, "moxin_lab": {"format": 1, "scores": [',
        '{"samples": {}, "moxin_lab": {"format": 2, "scores": []}}',
        "[]",
        "",
        "NaN",
    ],
)
def test_a_results_file_with_a_part_missing_is_refused_by_name(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(LabError, match=r"r\.json"):
        result_files.compare([path, path])


def test_two_results_are_compared_on_the_same_items_and_protocol_only(checkpoint, tasks, tmp_path):
    include = tasks / "lab_capitals.yaml"
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    evaluate(checkpoint, [], include=include, out=paths[0])
    changed = json.loads(paths[0].read_text())
    for sample in changed["samples"]["lab_capitals"]:
        sample["acc"] = 1.0
    changed["moxin_lab"]["scores"][0]["value"] = 1.0
    paths[1].write_text(json.dumps(changed))
    text = result_files.compare(paths[:2])
    first = json.loads(paths[0].read_text())["moxin_lab"]["scores"][0]["value"]
    assert f"{1 - first:+.3f} (" in text
    assert "95 % for all 2 together" in text
    evaluate(checkpoint, [], include=include, shots=1, out=paths[2])
    with pytest.raises(LabError, match="no score of the same protocol"):
        result_files.compare([paths[0], paths[2]])


def test_shots_replace_also_a_zero_that_the_task_states(tasks):
    path = tasks / "zero.yaml"
    path.write_text(CHOICE + "num_fewshot: 0\n")
    loaded = named_tasks.load([], path, shots=3)
    assert loaded.leaves["lab_capitals"].config.num_fewshot == 3


def test_a_task_file_of_ours_is_read_with_and_without_include():
    assert task_config("moxin_gsm8k")["num_fewshot"] == 8
    assert task_config("moxin_cloze_en")["output_type"] == "multiple_choice"
    assert task_config("moxin_amc23")["dataset_kwargs"] == {"data_files": {"test": "amc23.jsonl"}}


def test_baselines_are_of_the_answers_not_of_their_places(tasks):
    """The place of an answer says nothing where the prompt does not list the choices."""
    rows = [{"question": "?", "choices": [f"right {i}", "no"], "label": 0} for i in range(4)]
    rows.append({"question": "?", "choices": ["no", "a", "b"], "label": 0})
    (tasks / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = named_tasks.load([], tasks / "lab_capitals.yaml").facts["lab_capitals"]
    assert facts.majority == 0.2
    assert facts.chance == pytest.approx((4 / 2 + 1 / 3) / 5)


@pytest.fixture(scope="module")
def smollm_file(tmp_path_factory):
    """A GGUF file that names SmolLM2's rule, with merges that GPT-2's rule would let happen."""
    folder = tmp_path_factory.mktemp("smollm")
    names = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "11", "ĠĠ"]
    bpe = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("1", "1"), ("Ġ", "Ġ")]))
    bpe.pre_tokenizer, bpe.decoder = gguf_tokenizer.rules()["smollm"], decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", pad_token="</s>"
    )
    save_mistral(folder, tokenizer, bos=0, eos=0, pad=0)
    folders.export(folder, "gguf", folder / "out")
    return folder / "out" / "model.gguf"


def test_a_gguf_files_text_is_cut_by_the_rule_that_the_file_names(smollm_file):
    lm = checkpoints.load(smollm_file)
    tokens = lm.tokenizer.convert_ids_to_tokens(lm.tok_encode("x  1123 </s>"))
    assert tokens == ["x", "ĠĠ", "1", "1", "2", "3", "Ġ", "<", "/", "s", ">"]


def test_a_gguf_file_with_a_rule_that_is_not_known_is_refused(smollm_file, monkeypatch):
    values = gguf_tokenizer.read(smollm_file) | {"pre": "llama-bpe"}
    monkeypatch.setattr(gguf_tokenizer, "read", lambda path: values)
    with pytest.raises(LabError, match=r"model.gguf: .*'llama-bpe'.* gpt-2, smollm, tekken"):
        checkpoints.load(smollm_file)


def test_a_gguf_file_of_sentencepiece_is_read_by_transformers(smollm_file, monkeypatch):
    def found(folder, **options):
        raise ValueError(f"transformers was asked for {options['gguf_file']}")

    values = gguf_tokenizer.read(smollm_file) | {"model": "llama"}
    monkeypatch.setattr(gguf_tokenizer, "read", lambda path: values)
    monkeypatch.setattr(checkpoints.AutoTokenizer, "from_pretrained", found)
    with pytest.raises(LabError, match=r"transformers was asked for model.gguf"):
        checkpoints.load(smollm_file)
