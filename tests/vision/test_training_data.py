"""`moxin_lab.vision.training_data`: LLaVA's files go through the same trainings as the cards, and
missing files are named.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from moxin_lab.scales.sections import VlmTrainingSettings
from moxin_lab.vision import answering, data, experiments, tasks, training_data
from moxin_lab.vision.data import DataError
from moxin_lab.vision.features import compute_features
from tests.vision.conftest import OPTIMISATION

FILES = {
    "align": "chat/blip_laion_cc_sbu_558k.json",
    "finetune": "chat/mix665k.json",
    "images": "pictures",
}


@pytest.fixture
def published(tmp_path):
    """Both files in the form that LLaVA publishes, with images of several sizes and modes in one
    folder.
    """
    rng = np.random.default_rng(0)
    captions, mixed = [], []
    for number in range(6):
        name = f"00453/00453{number}.jpg"
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + 9 * number, 40)
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).convert(
            "L" if number == 1 else "RGB"
        ).save(path)
        question = (
            "Render a clear and concise summary of the photo.\n<image>"
            if number % 2
            else "<image>\nWhat is this?"
        )
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"picture {number}"},
        ]
        captions.append({"id": f"00453{number}", "image": name, "conversations": turns})
        more = [
            {"from": "human", "value": "And then?"},
            {"from": "gpt", "value": "nothing " * number + "more"},
        ]
        mixed.append({"id": f"m{number}", "image": name, "conversations": [*turns, *more]})
    text = [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]
    mixed += [{"id": f"text_{number}", "model": "", "conversations": text} for number in range(2)]
    (tmp_path / "chat").mkdir()
    for key, records in (("align", captions), ("finetune", mixed)):
        (tmp_path / FILES[key]).write_text(json.dumps(records))
    return tmp_path


@pytest.mark.parametrize("arm", ["no-align", "align"])
def test_published_files_train_by_the_calls_that_train_on_the_cards(
    published, tiny_vlm, byte_tokenizer, repository, arm
):
    loaded = training_data.from_llava(FILES, published)
    assert len(loaded.captions) == 6 and len(loaded.instructions) == 8 and not loaded.has_features
    shape = {
        **OPTIMISATION,
        "examples_per_step": 4,
        "micro_batch_examples": 2,
        "learning_rate": 1e-3,
        "epochs": 2,
    }
    training = VlmTrainingSettings(**shape, max_tokens=96, activation_checkpointing="full")
    settings = SimpleNamespace(
        align=training,
        finetune=training,
        arms=(arm,),
        seeds=1,
        backbone="pretrained",
        answer_batch=8,
        max_new_tokens=4,
        projector_start="torch",
    )
    concepts = data.read_concepts(repository / "data_cards" / "emoji", "test")
    items = tasks.make_items("side", 6, concepts, edge=32, seed=0, split="test")
    seen = compute_features(
        tiny_vlm.towers, training_data.pictures_by_name(items, concepts[:3], 32), device="cpu"
    )
    before = {name: value.clone() for name, value in tiny_vlm.decoder.state_dict().items()}
    done = experiments.run_all(
        tiny_vlm.towers,
        {"pretrained": tiny_vlm.decoder},
        loaded,
        items,
        seen,
        byte_tokenizer,
        settings,
        seed=0,
        folder=published / "scratch",
        device="cpu",
    )
    logs = done.trained[arm][0].logs
    assert list(logs) == (["align", "finetune"] if arm == "align" else ["finetune"])
    assert [len(log) for log in logs.values()] == ([3, 4] if arm == "align" else [4])
    for log in logs.values():
        assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    answers = done.answers[arm][0]
    assert len(answers) == 6 and set(answers) <= set(tasks.SIDES)
    features = experiments.recipe_features(
        arm, done.trained[arm][0], tiny_vlm.towers, seen, items, device="cpu"
    )
    models = [run.model for run in done.trained[arm]]
    of_base = answering.baselines(
        models, done.answers[arm], items, items, features, byte_tokenizer, settings, seed=0
    )
    assert [list(by_answerer) for by_answerer in of_base] == [
        ["model", "blind", "shuffled", "majority", "nearest"]
    ]
    assert of_base[0]["model"] == answers and {len(texts) for texts in of_base[0].values()} == {6}
    assert all(
        (value == before[name]).all() for name, value in tiny_vlm.decoder.state_dict().items()
    )


def test_a_missing_file_is_named_with_its_contents(published):
    for key, what in (
        ("align", "558K records"),
        ("finetune", "665K conversations"),
        ("images", "the folder below which"),
    ):
        with pytest.raises(
            DataError, match=rf"gone is missing: it should be .*{what}.*`vision: llava: {key}`"
        ):
            training_data.from_llava({**FILES, key: "gone"}, published)
    with pytest.raises(DataError, match="names align, finetune; it needs align, finetune, images"):
        training_data.from_llava({name: FILES[name] for name in ("align", "finetune")}, published)
    (published / "pictures" / "00453" / "004532.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"1 of 6 records name an image that is not below .*004532\.jpg of record 004532",
    ):
        training_data.from_llava(FILES, published)


def test_cards_give_the_same_form(repository):
    concepts = data.read_concepts(repository / "data_cards" / "emoji", "test")[:4]
    items = tasks.make_items("side", 3, concepts, edge=32, seed=0, split="train")
    every = training_data.pictures_by_name(items, concepts, 32)
    loaded = training_data.from_cards(concepts, items, every, ("en", "ko"))
    assert len(loaded.captions) == 8 and len(loaded.instructions) == 3 and loaded.has_features
    for example in (*loaded.captions, *loaded.instructions):
        assert every[example.image].shape == (32, 32, 3)
