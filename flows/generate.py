"""`mill generate`: a text that goes on from its beginning, printed as it is written."""

import sys

import polars as pl

from flows.predict import checked
from flows.store import usable
from tasks.errors import DataError, ParamsError
from tasks.params import load_model
from tasks.runtime import load_runtime
from tasks.writing import Sampling, Speaker


def generate(model: str, prompt: str, sampling: Sampling) -> None:
    """Print the prompt and what the version in use writes after it, token by token.

    Raises ReleaseError where no release may be used, DataError for a prompt that is empty or leaves no room,
    ParamsError for a model that does not write.
    """
    params = load_model(model)
    release, note = usable(model)
    if note:
        print(note, file=sys.stderr)
    runtime = load_runtime(release.folder, params.threads)
    if not runtime.problem.decoding:
        raise ParamsError(
            f"{model} is of {runtime.problem.name}, which writes no text. Ask it with mill predict {model}."
        )
    column = runtime.problem.inputs[0]
    text = checked(prompt.encode(errors="surrogateescape"), "The prompt")
    tidied = runtime.tidied(pl.DataFrame({column: [text]}))[column][0]
    if not tidied.strip():
        raise DataError("The prompt is empty. Say with what the text begins.")
    prompts = runtime.writer.prompts([tidied], sampling.max_new_tokens, cut=False)
    print(tidied, end="", flush=True)
    speaker = Speaker(runtime.tokenizer, lambda piece: print(piece, end="", flush=True))
    written = runtime.writer.write(prompts, sampling, lambda _, token: speaker.hear(token))
    speaker.end()
    print(flush=True)
    print(f"{release.version}, {len(written[0])} tokens", file=sys.stderr)
