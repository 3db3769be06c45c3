"""The chat page of the server in a real browser: streaming, sources, images, keyboard, telephone.

Needs the system's Chromium, as test_report_in_browser.py does.
"""

import base64
import io
import json

import pytest
from PIL import Image

from moxin_lab.serving.server import serve_in_background
from tests.browser.chromium import NEEDS_CHROMIUM, wait_until
from tests.serving.examples import write_model

pytestmark = NEEDS_CHROMIUM
HOSTILE = "<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "tiny chat")
    with serve_in_background(folder, max_context=300, max_tokens=40) as running:
        yield running


@pytest.fixture
def open_page(browser):
    opened = []

    def note(page, message):
        if message.type in ("warning", "error"):  # hints about password managers are neither
            page.complaints.append(message.text)

    def open_page(url, width=1280, **more):
        context = browser.new_context(viewport={"width": width, "height": 700}, **more)
        opened.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: note(page, message))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in opened:
        context.close()


def ready(page):
    """Once an answer is whole, another question may be sent."""
    page.wait_for_selector("#send:not([disabled])")
    wait_until(page, "document.querySelector('#stop').hidden")


def ask(page, text):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.user")
    ready(page)


def texts(page, role):
    return page.locator(f".message.{role} .text").all_text_contents()


def answer_with(page, events, status=200):
    """Let the next answers be these events instead of the model's."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    def fulfil(route):
        route.fulfill(status=status, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", fulfil)


def piece(text, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}


def make_source(text):
    """A source as the server sends it."""
    words = dict.fromkeys(("document", "title", "text"), text)
    return {"number": 1, **words, "headings": [text], "paragraph": 7}


def test_a_conversation_streams_and_remembers(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data))
    ask(page, "one")
    ask(page, "two")
    assert texts(page, "user") == ["one", "two"]
    answers = texts(page, "assistant")
    assert len(answers) == 2 and all(answers)
    last = json.loads(sent[-1])
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user"]
    assert last["messages"][1]["content"] == answers[0] and last["stream"]
    page.click("#reset")
    assert texts(page, "user") == [] == texts(page, "assistant")
    assert page.complaints == []


def test_what_becomes_true_later_is_waited_for_under_the_pages_policy(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    page.evaluate("setTimeout(() => { document.title = 'later' }, 300); 0")
    wait_until(page, "document.title === 'later'")
    with pytest.raises(AssertionError, match="not true within 0 s"):
        wait_until(page, "document.title === 'never'", seconds=0.1)


def test_all_of_it_works_by_keyboard(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    wait_until(page, "document.activeElement.id === 'question'")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.assistant")
    page.keyboard.press("Escape")  # stops the answer; what there is of it stays
    ready(page)
    assert texts(page, "user") == ["one\ntwo"]
    wait_until(page, "document.activeElement.id === 'question'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "reset"
    page.keyboard.press("Enter")
    assert texts(page, "user") == []


def test_markup_and_script_are_shown_as_text(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    source = make_source(HOSTILE)
    answer_with(page, [piece(HOSTILE, sources=[source])])
    ask(page, HOSTILE)
    assert texts(page, "user") == [HOSTILE] == texts(page, "assistant")
    page.click(".sources summary")
    assert page.locator(".sources summary").text_content() == f"[1] {HOSTILE}"
    shown = page.locator(".sources p").all_text_contents()
    assert shown == [HOSTILE, f"{HOSTILE}, paragraph 7"]
    assert page.title() == "Moxin Lab chat" and page.locator("main script, main img").count() == 0


def test_an_image_is_shown_and_sent_without_its_name(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    assert page.locator("#file").is_hidden()  # this model sees nothing
    seeing = {"data": [{"id": "tiny chat", "vision": True}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=seeing))
    page.reload()
    page.wait_for_selector("#file")
    file = io.BytesIO()
    Image.new("RGB", (40, 20), (200, 30, 30)).save(file, "PNG")
    name = "../../<script>evil.png"
    upload = {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#file", upload)
    wait_until(page, "document.querySelector('#preview').naturalWidth === 40")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data))
    answer_with(page, [piece("red")])
    ask(page, "What colour?")
    assert page.locator(".message.user img").evaluate("image => image.naturalWidth") == 40
    assert page.locator("#picture").is_hidden() and texts(page, "assistant") == ["red"]
    (body,) = (text for text in sent if text)
    image, text = json.loads(body)["messages"][0]["content"]
    assert base64.b64decode(image["image_url"]["url"].split(",")[1]) == file.getvalue()
    assert text == {"type": "text", "text": "What colour?"} and "evil" not in body
    page.unroute("**/v1/chat/completions")
    page.set_input_files("#file", {**upload, "buffer": b"no image"})
    page.wait_for_selector("#picture:not([hidden])")
    ask(page, "And this?")
    assert "sees no images" in page.locator("#status.problem").text_content()


def test_an_error_is_said_and_its_question_forgotten(server, open_page):
    page = open_page(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    ask(page, "x" * 400)
    assert "maximum context length is 300" in page.locator("#status.problem").text_content()
    answer_with(page, [piece("half"), {"error": {"message": "the request took too long"}}])
    ask(page, "again")
    assert "took too long" in page.locator("#status.problem").text_content()
    assert texts(page, "assistant") == ["half"]


def test_a_key_is_asked_for_and_sent(tmp_path, open_page):
    folder = write_model(tmp_path / "locked")
    with serve_in_background(folder, api_key="secret") as server:
        page = open_page(server.url)
        page.wait_for_selector("#key")
        page.wait_for_selector("#status:has-text('Give the API key')")
        page.fill("#key", "secret")
        page.keyboard.press("Tab")
        page.wait_for_selector("#model:has-text('locked')")
        ask(page, "one")
        assert len(texts(page, "assistant")) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_fits_any_width_and_axe_finds_no_fault(server, open_page, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(server.url, width, color_scheme=scheme, bypass_csp=True)
    page.wait_for_selector("#model:has-text('tiny chat')")
    answer_with(page, [piece("long" * 80, sources=[make_source("word" * 60)])])
    ask(page, "a question " + "without space" * 9)
    page.click(".sources summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('main').scrollWidth") <= width
    assert page.locator("#send").bounding_box()["y"] < 700  # in sight
    results = Axe().run(page)
    found = [(fault["id"], fault["nodes"][0]["html"]) for fault in results.response["violations"]]
    assert found == []


def test_the_page_asks_for_nothing_from_elsewhere(server, open_page):
    page = open_page("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#model:has-text('tiny chat')")
    ask(page, "one")
    assert all(url.startswith((f"{server.url}/", "data:")) for url in asked) and len(asked) >= 5
    # Were markup to get in, the browser would still run no script and load nothing.
    policy = page.request.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
