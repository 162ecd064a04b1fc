"""What callers of OpenAI's API ask for, taken apart. What would change an answer and is not done here is refused."""

from collections.abc import Mapping
from typing import Any

from tasks.errors import quoted
from tasks.serving.requests import BadRequest, check_lengths
from tasks.serving.writers import Wanted, new_seed
from tasks.writing import Sampling

_MOST_PROMPTS = 8
_MOST_STOPS = 4
_MOST_TEMPERATURE = 2.0
_DEFAULT_TOKENS = 16  # OpenAI's own, of completions

# These change no text.
_MINDED_BY_NOBODY = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
# What is here alone is done.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False, 0), "top_logprobs": (0,),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none",),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
_TAKEN = frozenset({"model", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options"})

_SHARED = {
    "model": {"type": "string"},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": _MOST_TEMPERATURE, "default": 1},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "default": 1},
    "top_k": {"type": ["integer", "null"], "minimum": 0, "description": "0 draws from all tokens"},
    "seed": {"type": ["integer", "null"]},
    "stop": {"oneOf": [{"type": "null"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "stream": {"type": ["boolean", "null"]},
}
COMPLETION = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        **_SHARED,
        "prompt": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
    },
}
CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        **_SHARED,
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["role", "content"]},
        },
    },
}


def completion(content: Any) -> tuple[str, Wanted]:
    """The model's name, and what it shall write. Raises BadRequest."""
    fields = _fields(content, {"prompt", "max_tokens"})
    prompts = [fields["prompt"]] if isinstance(fields.get("prompt"), str) else fields.get("prompt")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest("prompt has to be a string, or a list of strings.")
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        raise BadRequest(f"{len(prompts)} prompts in one request; 1 to {_MOST_PROMPTS} are taken.")
    return _model(fields), _wanted(fields, prompts, fields.get("max_tokens", _DEFAULT_TOKENS))


def chat(content: Any) -> tuple[str, Wanted]:
    """The same for what was said. A model that learned texts and no roles goes on below the last of them."""
    fields = _fields(content, {"messages", "max_tokens", "max_completion_tokens"})
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages has to be a list of objects with role and content.")
    said = [_said(message, f"Message {number + 1}") for number, message in enumerate(messages)]
    most = fields.get("max_completion_tokens", fields.get("max_tokens"))
    return _model(fields), _wanted(fields, ["\n\n".join(said)], most)


def wants_usage(content: Mapping[str, Any]) -> bool:
    """Whether the number of tokens is to be sent behind the pieces."""
    options = content.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


def _fields(content: Any, own: set[str]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise BadRequest(f"Expected an object with model, {', '.join(sorted(own))}.")
    fields = {name: value for name, value in content.items() if value is not None}
    for name, value in fields.items():
        if name in _ONLY and not any(_is(value, known) for known in _ONLY[name]):
            raise BadRequest(f"{name} is not supported. Leave it out.")
        if name not in _ONLY and name not in own | _TAKEN | _MINDED_BY_NOBODY:
            raise BadRequest(f"{quoted(name)} is not known. Leave it out.")
    if not isinstance(fields.get("stream", False), bool):
        raise BadRequest("stream has to be true or false.")
    return fields


def _is(value: Any, known: Any) -> bool:
    # Python takes true for 1.
    return bool(value == known) and isinstance(value, bool) == isinstance(known, bool)


def _model(fields: Mapping[str, Any]) -> str:
    if not isinstance(fields.get("model"), str):
        raise BadRequest("model has to be the name of a model. /v1/models lists them.")
    return str(fields["model"])


def _wanted(fields: Mapping[str, Any], prompts: list[str], most: Any) -> Wanted:
    check_lengths({"prompt": prompts})
    stop = [fields["stop"]] if isinstance(fields.get("stop"), str) else fields.get("stop", [])
    if not isinstance(stop, list) or len(stop) > _MOST_STOPS or not all(isinstance(one, str) and one for one in stop):
        raise BadRequest(f"stop has to be a string, or a list of at most {_MOST_STOPS} strings, none of them empty.")
    check_lengths({"stop": stop})
    sampling = Sampling(
        max_new_tokens=1 if most is None else _whole(most, "max_tokens", 1, 2**20),
        temperature=_number(fields.get("temperature", 1.0), "temperature", 0.0, _MOST_TEMPERATURE),
        top_k=_whole(fields.get("top_k", 0), "top_k", 0, 2**31),
        top_p=_number(fields.get("top_p", 1.0), "top_p", 1e-9, 1.0),
        seed=_whole(fields["seed"], "seed", -(2**63), 2**63 - 1) % 2**63 if "seed" in fields else new_seed(),
    )
    return Wanted(prompts, sampling, most is None, stop)


def _said(message: Any, where: str) -> str:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRequest(f"{where} has to be an object with role and content.")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        raise BadRequest(f"{where}: content has to be a string, or a list of parts of the type text.")
    return "".join(part["text"] for part in parts)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{name} has to be a whole number from {low} to {high}.")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{name} has to be a number from {low:g} to {high:g}.")
    return float(value)
