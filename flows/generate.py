"""`mill generate`: a text that goes on from its beginning, or a translation, printed as it is written."""

import sys
from dataclasses import replace

import polars as pl

from flows.predict import checked
from flows.store import usable
from tasks.errors import DataError, ParamsError
from tasks.params import load_model
from tasks.runtime import load_runtime
from tasks.writing import Sampling, Speaker


def generate(model: str, prompt: str, sampling: Sampling, *, to_its_end: bool = False) -> None:
    """Print the prompt and what the version in use writes after it, or its translation alone, token by token.

    With `to_its_end` a translation is not cut at `sampling.max_new_tokens`.

    Raises ReleaseError where no release may be used, DataError for a prompt that is empty or leaves no room,
    ParamsError for a model that does not write.
    """
    params = load_model(model)
    release, note = usable(model)
    if note:
        print(note, file=sys.stderr)
    runtime = load_runtime(release.folder, params.threads)
    if not runtime.problem.writes:
        raise ParamsError(
            f"{model} is of {runtime.problem.name}, which writes no text. Ask it with mill predict {model}."
        )
    column = runtime.problem.inputs[0]
    text = checked(prompt.encode(errors="surrogateescape"), "The prompt")
    tidied = runtime.tidied(pl.DataFrame({column: [text]}))[column][0]
    if not tidied.strip():
        raise DataError("The prompt is empty. Say with what the text begins.")
    writer = runtime.writer
    if to_its_end and writer.translates:
        sampling = replace(sampling, max_new_tokens=writer.max_tokens - 1)
    prompts = writer.prompts([tidied], sampling.max_new_tokens, cut=False)
    if not writer.translates:
        print(tidied, end="", flush=True)
    speaker = Speaker(runtime.tokenizer, lambda piece: print(piece, end="", flush=True))
    written = writer.write(prompts, sampling, lambda _, token: speaker.hear(token))
    speaker.end()
    print(flush=True)
    print(f"{release.version}, {len(written[0])} tokens", file=sys.stderr)
