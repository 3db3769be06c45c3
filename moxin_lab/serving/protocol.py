"""OpenAI's requests and errors, as far as this server serves them.

Guarantees: a body is parsed strictly (a number in quotes is no number, NaN is none either); a field
that would change the answer and is not served is refused by name, not ignored; every error has
OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.
Out of scope: what the fields do (`completions.py`), HTTP itself (`server.py`).
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Request = TypeVar("Request", bound=BaseModel)
MAX_STOPS = 16
MAX_CHOICES = 128
MAX_ALTERNATIVES = 20
MAX_TEXTS = 2048
"""Texts of one request; OpenAI's limit for embeddings."""
MAX_IDS = 2**20


class ApiError(Exception):
    """An answer with an HTTP status. param: the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = (
            "rate_limit_error"
            if self.status == 429
            else "server_error"
            if self.status >= 500
            else "authentication_error"
            if self.status == 401
            else "invalid_request_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS)]
Texts = str | TokenIds | Annotated[list[str] | list[TokenIds], Field(max_length=MAX_TEXTS)]


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Request(_Body):
    """What completions of both kinds take."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # vLLM's: the log-probabilities of the prompt, with so many alternatives.
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    # vLLM's: an end token does not end the answer, for measurements of speed.
    ignore_eos: bool = False
    # Only their neutral values are served.
    presence_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Literal[0] | Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    # These change nothing about the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(_Request):
    """`POST /v1/completions`. echo: the prompt is part of the text, and of `logprobs`."""

    prompt: Texts
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = 16
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        return _each(self.prompt)


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ImageUrl(_Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Body):
    """`developer` is OpenAI's newer name for `system`. Fields of tool calls must be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """All text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """The addresses of the message's images."""
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class ResponseFormat(_Body):
    type: Literal["text"]


class ChatRequest(_Request):
    """`POST /v1/chat/completions`. A last message of the assistant is scored, not continued: with
    `prompt_logprobs` and `max_tokens` 0 the log-probability of an answer can be read.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


def _each(value: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """One text or list of ids as a list of one; a list of them as it is."""
    if isinstance(value, str):
        return [value]
    ids = [item for item in value if isinstance(item, int)]
    return [ids] if ids else [item for item in value if not isinstance(item, int)]


def parse(kind: type[Request], body: bytes) -> Request:
    """A request of this kind. Raises ApiError 400 that names the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, f"the body is not JSON: {first['msg']}") from None
        # The branches of a union follow the field's own name; a client knows the name alone.
        path = [str(part) for part in first["loc"]]
        field = path[0] if path else "body"
        known = ".".join(part for part in path if part.isidentifier() or part.isdigit())
        message = first["msg"]
        if first["type"] == "extra_forbidden":
            message = "this server does not know the field"
        raise ApiError(400, f"{known or field}: {message}", param=field) from None
