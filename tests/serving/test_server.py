"""The server as existing clients meet it: the official client, curl, and plain HTTP."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert
from moxin_lab.model.generate import generate
from moxin_lab.posttraining import prompts
from moxin_lab.serving import loading
from moxin_lab.serving.server import serve_in_background
from moxin_lab.serving.text import TokenTexts
from tests.posttraining.examples import make_tokenizer
from tests.serving.examples import write_model

ROOT = Path(__file__).parents[2]
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "instruct")


@pytest.fixture(scope="module")
def server(folder):
    with serve_in_background(folder, max_rows=4, max_context=400) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(folder):
    return convert.from_pretrained(folder)


def greedy(model, ids, count):
    """The text of a greedy continuation up to an end token, and its ids with the end token."""
    new = generate(model, torch.tensor([ids]), max_new_tokens=count)[0, len(ids) :].tolist()
    if 2 in new:
        new = new[: new.index(2) + 1]
    return TOKENIZER.decode(new, skip_special_tokens=True), new


def test_the_official_client_lists_the_model(client, server):
    assert [model.id for model in client.models.list()] == ["instruct"] == [server.model]
    assert client.models.retrieve("instruct").id == "instruct"


def test_a_chat_answer_is_the_greedy_one_and_its_stream_is_the_same(client, model):
    messages = [{"role": "system", "content": "Count."}, {"role": "user", "content": "one 두 三"}]
    ids = prompts.encode_prompt(messages, TOKENIZER)
    text, new = greedy(model, ids, 40)
    options = {"model": "instruct", "messages": messages, "temperature": 0, "max_tokens": 40}
    answer = client.chat.completions.create(**options)
    assert answer.choices[0].message.content == text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(new))
    stream = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text and len(pieces) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == answer.usage and chunks[0].usage is None
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason


def test_a_text_is_continued_and_several_at_once(client, model):
    prompts = ["one two", "셋", [70, 71, 72]]
    for given in (prompts[0], prompts[2], prompts[:2]):
        answer = client.completions.create(
            model="instruct", prompt=given, temperature=0, max_tokens=12
        )
        texts = given if isinstance(given[0], str) and isinstance(given, list) else [given]
        for choice, prompt in zip(answer.choices, texts, strict=True):
            ids = TOKENIZER(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            assert choice.text == greedy(model, ids, 12)[0]


def test_echo_and_logprobs_have_an_entry_for_each_token_of_the_prompt_and_one_more(client, model):
    prompt = "one two 三"
    ids = TOKENIZER(prompt)["input_ids"]
    answer = client.completions.create(
        model="instruct", prompt=prompt, echo=True, logprobs=3, max_tokens=1, temperature=0
    ).choices[0]
    entries = answer.logprobs
    assert answer.text.startswith(prompt)
    assert len(entries.tokens) == len(entries.token_logprobs) == len(ids) + 1
    assert entries.token_logprobs[0] is None and entries.top_logprobs[0] is None
    log_probs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    expected = [log_probs[place, token].item() for place, token in enumerate(ids[1:])]
    assert entries.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert entries.token_logprobs[-1] == pytest.approx(log_probs[-1].max().item(), abs=1e-4)
    for place, top in enumerate(entries.top_logprobs[1:]):
        assert max(top.values()) == pytest.approx(log_probs[place].max().item(), abs=1e-4)
        assert entries.tokens[place + 1] in top
    assert entries.text_offset[:3] == [0, 1, 2] and entries.text_offset[-1] == len(prompt)
    assert entries.tokens[:3] == ["o", "n", "e"] and entries.tokens[8] == "bytes:\\xe4"


def test_echo_without_new_tokens_scores_the_prompt_alone(client):
    answer = client.completions.create(
        model="instruct", prompt="abc", echo=True, logprobs=1, max_tokens=0
    )
    assert answer.choices[0].text == "abc" and answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == 3


def test_chat_logprobs_are_those_of_the_answer(client, model):
    messages = [{"role": "user", "content": "five"}]
    answer = client.chat.completions.create(
        model="instruct",
        messages=messages,
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=2,
    ).choices[0]
    ids = prompts.encode_prompt(messages, TOKENIZER)
    _, new = greedy(model, ids, 6)
    log_probs = model(torch.tensor([ids + new]))[0].log_softmax(dim=-1)
    assert len(answer.logprobs.content) == len(new)
    for place, entry in enumerate(answer.logprobs.content):
        expected = log_probs[len(ids) + place - 1, new[place]].item()
        assert entry.logprob == pytest.approx(expected, abs=1e-4)
        assert entry.top_logprobs[0].logprob == entry.logprob and len(entry.top_logprobs) == 2
        assert bytes(entry.bytes) in (TOKENIZER.decode([new[place]]).encode(), bytes(entry.bytes))


def test_an_answer_can_be_scored_over_chat(server, model):
    messages = [{"role": "user", "content": "five"}, {"role": "assistant", "content": "six"}]
    body = {"model": "instruct", "messages": messages, "max_tokens": 0, "prompt_logprobs": 0}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["choices"][0]
    ids = [*prompts.encode_prompt(messages[:1], TOKENIZER), *TOKENIZER("six")["input_ids"], 2]
    log_probs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    scored = [answer["prompt_logprobs"][place][str(ids[place])]["logprob"] for place in (-3, -1)]
    expected = [log_probs[len(ids) - 1 + place, ids[place]].item() for place in (-3, -1)]
    assert scored == pytest.approx(expected, abs=1e-4)


def test_seeds_repeat_and_choices_differ(client):
    def sampled(seed):
        answer = client.completions.create(
            model="instruct", prompt="one", max_tokens=12, temperature=1.5, seed=seed, n=3
        )
        return [choice.text for choice in answer.choices]

    first = sampled(-7)
    assert first == sampled(-7) != sampled(8) and len(set(first)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, model, stream):
    ids = TOKENIZER("one")["input_ids"]
    text, _ = greedy(model, ids, 40)
    stop = text[9:12]
    answer = client.completions.create(
        model="instruct",
        prompt="one",
        max_tokens=40,
        temperature=0,
        stop=["never there", stop],
        stream=stream,
    )
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == text[: text.find(stop)]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_embeddings_are_means_of_the_last_states(client, model):
    texts = ["one two", "三"]
    answer = client.embeddings.create(model="instruct", input=texts)  # base64 underneath
    for item, text in zip(answer.data, texts, strict=True):
        states = model.hidden_states(torch.tensor([TOKENIZER(text)["input_ids"]]))[0].mean(dim=0)
        expected = (states / states.norm()).tolist()
        assert item.embedding == pytest.approx(expected, abs=1e-5)
    plain = client.embeddings.create(model="instruct", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)


def test_curl_works_as_documentation_shows_it(server):
    question = [{"role": "user", "content": "one"}]
    body = {"model": "instruct", "messages": question, "max_tokens": 3, "temperature": 0}
    command = ["curl", "--silent", f"{server.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer x"]
    done = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 1 <= answer["usage"]["completion_tokens"] <= 3
    streamed = subprocess.run(
        [*command, "--no-buffer", "-d", json.dumps({**body, "stream": True})],
        capture_output=True,
        check=True,
    )
    assert streamed.stdout.endswith(b"data: [DONE]\n\n")


def test_a_llama_folder_without_a_template_continues_text(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "llama")
    make_tokenizer(template=False).save_pretrained(tmp_path / "llama")
    ids = TOKENIZER("one")["input_ids"]
    new = theirs.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, 3:].tolist()
    with serve_in_background(tmp_path / "llama") as server:
        body = {"model": "llama", "prompt": "one", "temperature": 0, "max_tokens": 5, "logprobs": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]
        texts = TokenTexts(TOKENIZER)
        assert answer["logprobs"]["tokens"] == [texts.text(token) for token in new]
        body = {"model": "llama", "messages": [{"role": "user", "content": "one"}]}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert response.status_code == 400 and "use /v1/completions" in response.text


def test_the_command_serves_until_it_is_stopped(folder):
    command = [sys.executable, "-m", "moxin_lab.cli", "serve", "--model", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--name", "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("mine: http://127.0.0.1:"), process.stderr.read()
        url = line.split()[1]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "mine"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_folder_whose_own_generation_options_are_not_followed_is_not_served(tmp_path):
    write_model(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    with pytest.raises(LabError, match=r"asks for repetition_penalty=1\.3"):
        loading.load(tmp_path)
