"""What a request asks the model to read, and how much it may write.

Guarantees: whatever cannot be served is refused with the field that is wrong, before the model
works; an image comes from the request itself, nothing is fetched.
Out of scope: the answer (`completions.py`).
"""

from dataclasses import dataclass

from moxin_lab.serving.jobs import Event
from moxin_lab.serving.loading import Prompt, PromptError, Served
from moxin_lab.serving.protocol import ApiError, ChatRequest, CompletionRequest
from moxin_lab.vision.images import ImageError, open_image

MAX_PIXELS = 16_000_000
"""Of an image: every model here sees a few hundred pixels a side, and decoding takes memory."""


@dataclass(frozen=True)
class Limits:
    """max_context: tokens of prompt and completion. max_tokens: new tokens of one completion.
    seconds: of a request, waiting included. max_jobs: completions that one request may ask for.
    """

    max_context: int
    max_tokens: int
    seconds: float
    max_jobs: int


def check_length(served: Served, text: str, limits: Limits, param: str) -> None:
    """Raises ApiError for a text that is too long however few tokens it has, before it is made
    into tokens, which takes a hundred times its memory.
    """
    fewest = len(text) // served.longest_piece
    if fewest > limits.max_context:
        raise ApiError(
            400,
            f"{param}: this model's maximum context length is {limits.max_context} tokens; the "
            f"text has {len(text)} characters, which are {fewest} tokens at least",
            code="context_length_exceeded",
            param=param,
        )


def completion_prompts(
    served: Served, request: CompletionRequest, limits: Limits, param: str = "prompt"
) -> list[tuple[Prompt, str]]:
    """The prompts of a completion request, each with the text that `echo` repeats. Raises ApiError
    for none, an empty one, or an id outside the vocabulary.
    """
    result = []
    size = served.model.config.vocab_size
    for prompt in request.prompts:
        if isinstance(prompt, str):
            check_length(served, prompt, limits, param)
            try:
                ids, text = served.text_prompt(prompt), prompt
            except PromptError as error:
                raise ApiError(400, f"{param}: {error}", param=param) from error
        else:
            ids = prompt
            if max(ids) >= size:
                raise ApiError(
                    400, f"{param}: {max(ids)} is no token id: there are {size}", param=param
                )
            text = served.tokenizer.decode(ids)
        if not ids:
            raise ApiError(400, f"{param}: it has no token at all", param=param)
        result.append((Prompt(ids), text))
    if not result:
        raise ApiError(400, f"{param}: there is none", param=param)
    return result


def chat_prompt(served: Served, request: ChatRequest, limits: Limits) -> Prompt:
    """The prompt of a conversation, with its image. Raises ApiError."""
    check_length(served, "".join(m.text for m in request.messages), limits, "messages")
    addresses = [address for message in request.messages for address in message.images]
    if len(addresses) > 1:
        raise ApiError(
            400,
            f"messages: {len(addresses)} images; this model takes one in a conversation",
            param="messages",
        )
    image = None
    if addresses:
        if served.vlm is None:
            raise ApiError(
                400, f"messages: the model {served.name} sees no images", param="messages"
            )
        if not addresses[0].startswith("data:"):
            raise ApiError(
                400,
                "messages: an image is sent as a data: URI; this server fetches nothing",
                param="messages",
            )
        try:
            image = open_image(addresses[0], max_pixels=MAX_PIXELS)
        except ImageError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from error
    if request.messages[-1].role == "assistant" and request.max_tokens != 0:
        raise ApiError(
            400,
            "messages: the last one is the assistant's, so there is nothing to answer; with "
            "max_tokens 0 and prompt_logprobs it is scored",
            param="messages",
        )
    messages = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.text,
        }
        for message in request.messages
    ]
    try:
        return served.chat_prompt(messages, image)
    except PromptError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from error


def new_tokens(request: CompletionRequest | ChatRequest, num_prompt: int, limits: Limits) -> int:
    """How many tokens a completion may have. Raises ApiError where prompt and completion are more
    than the context, or the completion more than the server gives.
    """
    wanted = request.max_tokens
    if isinstance(request, ChatRequest):
        if wanted is not None and request.max_completion_tokens is not None:
            raise ApiError(
                400,
                "max_tokens and max_completion_tokens are two names of one limit: give one",
                param="max_tokens",
            )
        wanted = request.max_completion_tokens if wanted is None else wanted
    room = limits.max_context - num_prompt
    if room < (wanted if wanted is not None else 1):
        raise ApiError(
            400,
            f"this model's maximum context length is {limits.max_context} tokens; the prompt has "
            f"{num_prompt} and the completion asks for {wanted or 'at least one'}: shorten either",
            code="context_length_exceeded",
            param="messages" if isinstance(request, ChatRequest) else "prompt",
        )
    if wanted is not None and wanted > limits.max_tokens:
        raise ApiError(
            400,
            f"max_tokens {wanted} is more than the {limits.max_tokens} that this server gives",
            param="max_tokens",
        )
    return min(room, limits.max_tokens) if wanted is None else wanted


def event_error(event: Event) -> ApiError:
    """A job's last event as an error: 504 out of time, 503 if the server stops, else 500."""
    if event.finish == "timeout":
        return ApiError(
            504,
            "the request took longer than this server allows",
            code="timeout",
            headers={"x-should-retry": "false"},
        )
    status = 503 if event.finish == "cancelled" or "stopping" in event.error else 500
    return ApiError(status, event.error or "the request was cancelled", code="server_error")
