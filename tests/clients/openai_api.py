"""Asks a server by OpenAI's own client, in that client's environment, and prints what came as JSON.

python tests/clients/openai_api.py URL MODEL PROMPT
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from openai import APIStatusError, OpenAI


def main(url: str, model: str, prompt: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    given: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**given)
    pieces = list(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    drawn = [
        client.completions.create(**{**given, "temperature": 1.5}, top_p=0.9, seed=seed).choices[0].text
        for seed in (1, 1, 2, 3)
    ]
    messages: list[Any] = [{"role": "system", "content": "Go on."}, {"role": "user", "content": prompt}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    chunks = list(
        client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, stream=True)
    )
    report = {
        "models": [found.id for found in client.models.list()],
        "retrieved": client.models.retrieve(model).id,
        "whole": whole.model_dump(),
        "pieces": [piece.model_dump() for piece in pieces],
        "drawn": drawn,
        "chat": chat.model_dump(),
        "chunks": [chunk.model_dump() for chunk in chunks],
        "errors": [
            error_of(lambda: client.completions.create(**{**given, "model": "other"})),
            error_of(lambda: client.completions.create(**{**given, "max_tokens": 5000})),
            error_of(lambda: client.completions.create(**given, n=2)),
            error_of(lambda: list(client.completions.create(**{**given, "prompt": " "}, stream=True))),
        ],
    }
    print(json.dumps(report))


def error_of(ask: Callable[[], object]) -> tuple[int, str]:
    try:
        ask()
    except APIStatusError as error:
        return error.status_code, str(error)
    return 200, "nothing was wrong"


if __name__ == "__main__":
    main(*sys.argv[1:])
