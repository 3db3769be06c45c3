"""The server with an index: chat answers from documents, with their sources."""

import json

import httpx
import openai
import pytest

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import answers, index
from moxin_lab.serving.documents import Document, Paragraph
from moxin_lab.serving.server import serve_in_background
from tests.serving.examples import write_model

SCRIPT = "<script>alert(1)</script> zebra stripes"
PAGES = {
    "tables": ["Choose Table - Insert Table.", "Tables have rows."],
    "zebra": [SCRIPT],
}


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    made = [
        Document(f"{name}.html", name, tuple(Paragraph((name,), "text", text) for text in texts))
        for name, texts in PAGES.items()
    ]
    index.build_from(made, folder)
    return folder


@pytest.fixture(scope="module")
def server(knowledge, tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=2048)
    with serve_in_background(folder, index=knowledge, max_tokens=20) as running:
        yield running


@pytest.fixture
def supported(monkeypatch):
    """As if a paragraph bore out what the random model writes."""
    monkeypatch.setattr(answers, "SUPPORT", 0.0)


def ask(server, question, **more):
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json={**body, **more}, timeout=60)


def test_an_answer_cites_its_paragraph_and_a_stream_gives_the_same(server, supported):
    answer = ask(server, "zebra stripes").json()
    text = answer["choices"][0]["message"]["content"]
    (source,) = answer["sources"]
    assert text.endswith(f"[{source['number']}]") and source["text"] == SCRIPT
    assert source["document"] == "zebra.html" and source["headings"] == ["zebra"]
    assert answer["usage"]["completion_tokens"] > 0
    options = {"include_usage": True}
    lines = ask(server, "zebra stripes", stream=True, stream_options=options).text.split("\n\n")
    first, last = (json.loads(line.removeprefix("data: ")) for line in lines[:2])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": text}
    assert first["sources"] == answer["sources"] and lines[2] == "data: [DONE]"
    assert last["usage"] == answer["usage"] and first["usage"] is None


def test_a_client_that_knows_nothing_of_sources_gets_a_plain_answer(server, supported):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "insert table"}]
    answer = client.chat.completions.create(model="m", messages=messages, temperature=0)
    assert answer.choices[0].message.content.endswith("]")


def test_what_the_paragraphs_do_not_bear_out_is_taken_back(server):
    answer = ask(server, "zebra stripes").json()
    assert answer["choices"][0]["message"]["content"] == "no answer found"
    assert answer["sources"] == [] and answer["usage"]["completion_tokens"] > 0


def test_where_retrieval_is_weak_the_model_is_not_asked(server):
    done = server.engine.scheduler.counts["prompt_tokens"]
    answer = ask(server, "quantum chromodynamics lattice").json()
    assert answer["choices"][0]["message"]["content"] == "no answer found"
    assert answer["sources"] == [] and answer["usage"]["total_tokens"] == 0
    assert server.engine.scheduler.counts["prompt_tokens"] == done


@pytest.mark.parametrize("more", [{"n": 2}, {"logprobs": True}, {"prompt_logprobs": 1}])
def test_what_an_answer_with_sources_has_not_is_refused(server, more):
    response = ask(server, "zebra", **more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(more))


def test_an_empty_question_is_refused(server):
    assert ask(server, " ").status_code == 400


def test_a_folder_without_an_index_is_refused(tmp_path):
    folder = write_model(tmp_path / "m")
    with (
        pytest.raises(LabError, match="holds no index"),
        serve_in_background(folder, index=tmp_path),
    ):
        pass
