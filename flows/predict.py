"""`mill predict`: a few texts, answered at once by the version in use."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from flows.store import usable
from tasks.answers import open_answerer
from tasks.errors import DataError
from tasks.params import load_model
from tasks.problems import Problem


def predict(model: str, texts: Sequence[str], *, as_json: bool) -> None:
    """Print a line for each text as soon as it is answered. Raises ReleaseError where no release may be used."""
    load_model(model)
    release, note = usable(model)
    if note:
        print(note, file=sys.stderr)
    answerer = open_answerer(release)
    for where, text in _texts(texts):
        row = _row(text, where, answerer.runtime.problem)
        # Each alone, so that no text's answer depends on the one beside it.
        answer = answerer.answer(row, batch_size=1).row(0, named=True)
        if answer["reason"]:
            print(f"{where}: {answer['reason']}, so there is no answer.", file=sys.stderr)
        print(json.dumps(answer, ensure_ascii=False) if as_json else _fields(answer), flush=True)


def _texts(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    if list(texts) != ["-"]:
        for number, text in enumerate(texts, 1):
            # Bytes that are no UTF-8 come as surrogates, which no tokenizer takes.
            yield f"TEXT {number}", checked(text.encode(errors="surrogateescape"), f"TEXT {number}")
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield f"line {number}", checked(line.rstrip(b"\r\n"), f"line {number}")


def checked(text: bytes, where: str) -> str:
    """The text of these bytes. Raises DataError where they are no UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start + 1}). Convert it: iconv -t UTF-8.") from None


def _row(text: str, where: str, problem: Problem) -> pl.DataFrame:
    """The text is the problem's input; where it has several, a JSON object of them."""
    row: Any = {problem.inputs[0]: text}
    if len(problem.inputs) > 1:
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict) or set(row) != set(problem.inputs):
            raise DataError(
                f"{where} has to be a JSON object of {', '.join(problem.inputs)}: {problem.name} reads them all."
            )
    return pl.DataFrame([row], schema={name: problem.columns[name] for name in problem.inputs})


def _fields(answer: dict[str, Any]) -> str:
    """Label, probability, version: what fits into a line, without lists of numbers."""
    shown = {name: value for name, value in answer.items() if name != "reason" and not isinstance(value, list | dict)}
    return "\t".join(
        "" if value is None else f"{value:.4f}" if isinstance(value, float) else " ".join(str(value).split())
        for value in shown.values()
    )
