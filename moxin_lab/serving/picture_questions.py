"""Questions about pictures asked over HTTP, as stage 07 asks them in its own process.

    answers = answer_items("http://127.0.0.1:8000", "vlm", items)
    scoring.score(items, answers)

Guarantees: the answers are those of `vision.answering.answer` up to rounding: the likeliest choice
where there are choices, by the log-probability of each with its end token, else greedy text.
Out of scope: several requests at once; retries.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from PIL import Image

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving.client import data_uri
from moxin_lab.vision import scoring
from moxin_lab.vision.tasks import Item

TIMEOUT_SECONDS = 300.0


def answer_items(
    url: str,
    model: str,
    items: Sequence[Item],
    *,
    max_new_tokens: int = 32,
    with_picture: bool = True,
    api_key: str | None = None,
) -> list[str]:
    """One answer per item. with_picture False: blind. Raises LabError with the server's reason."""

    def ask(messages: list[Any], **options: Any) -> dict[str, Any]:
        body = {"model": model, "messages": messages, "temperature": 0, **options}
        return post(url, "chat/completions", body, api_key=api_key)

    answers = []
    for item in items:
        content: list[Any] = [{"type": "text", "text": item.question}]
        if with_picture:
            image = {
                "type": "image_url",
                "image_url": {"url": data_uri(Image.fromarray(item.picture))},
            }
            content.insert(0, image)
        question = {"role": "user", "content": content}
        if not item.choices:
            body = ask([question], max_tokens=max_new_tokens)
            answers.append(body["choices"][0]["message"]["content"].strip())
            continue
        length = ask([question], max_tokens=0)["usage"]["prompt_tokens"]
        log_likelihoods = []
        for choice in item.choices:
            scored = ask(
                [question, {"role": "assistant", "content": choice}],
                max_tokens=0,
                prompt_logprobs=0,
            )
            entries = scored["choices"][0]["prompt_logprobs"][length:]
            log_likelihoods.append(sum(next(iter(entry.values()))["logprob"] for entry in entries))
        answers += scoring.most_likely([item], [log_likelihoods])
    return answers


def post(url: str, path: str, body: dict[str, Any], *, api_key: str | None = None) -> Any:
    """The answer to a POST below /v1. Raises LabError with the server's reason."""
    request = urllib.request.Request(
        f"{url}/v1/{path}",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")[:500]
        raise LabError(f"{url} answered {error.code}: {reason}") from error
    except OSError as error:
        raise LabError(f"{url} cannot be reached: {error}") from error
