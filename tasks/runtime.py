"""What answers: an exported model under ONNX Runtime with its tokenizer. Export checks it, evaluate measures it, deploy
packs it, and predictions come from it, so that what is evaluated is what is served.

A folder that it opens holds `model.onnx`, `tokenizer.json` and `runtime.json` (problem, signature, tidy, max_tokens,
pad_id, calibration, variant).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks import problems
from tasks.errors import DataError
from tasks.normalise import normalised, untidy
from tasks.params import Tidy
from tasks.problems import Problem, Signature
from tasks.problems._decoder import KEPT
from tasks.problems._text import begins_row
from tasks.redact import redact, suspect
from tasks.shards import read_json
from tasks.vocabulary import has_no_ascii_letter, too_long_reason, unread_reasons
from tasks.writing import Sampling, Writer, empty

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

# Of a continuation that nobody asked to be longer.
_NEW_TOKENS = 32

# What ONNX Runtime makes of the graph and does better without: on processors, an addition and a layer normalisation in
# one take three times as long as one after the other (by its own profiler, version 1.32).
_SLOWER = ("SkipLayerNormFusion",)

FILES = ("model.onnx", "runtime.json", "tokenizer.json")


@dataclass(frozen=True)
class Runtime:
    """A loaded model. Its methods keep the order of the rows that they are given."""

    problem: Problem
    signature: Signature
    tidy: Tidy
    calibration: Mapping[str, float]
    max_tokens: int
    pad_id: int
    session: "InferenceSession"
    tokenizer: "Tokenizer"

    def outputs(
        self, rows: pl.DataFrame, batch_size: int = 64, advance: Callable[[int], None] = lambda _: None
    ) -> dict[str, NDArray[Any]]:
        """All that an answer to clean rows is made of: what `read` gives, and what is written where something is."""
        if not self.problem.writes:
            return self.read(rows, batch_size, advance)
        return self.completed(rows, self._written(rows, batch_size, advance), batch_size)

    def completed(self, rows: pl.DataFrame, written: Sequence[str], batch_size: int = 64) -> dict[str, NDArray[Any]]:
        """All that the answer to each row is made of, where this is what was written for it."""
        column = str(self.problem.writes)
        told = rows.with_columns(pl.Series(column, written, dtype=pl.String))
        return {**self.read(told, batch_size), column: np.array(written, dtype=object)}

    def read(
        self, rows: pl.DataFrame, batch_size: int = 64, advance: Callable[[int], None] = lambda _: None
    ) -> dict[str, NDArray[Any]]:
        """The model's arrays for clean rows of `id` and the problem's inputs; `advance` hears of each batch's rows."""
        encoded = self.encoded(rows)
        outputs = run(self.session, self.problem, encoded, self.pad_id, batch_size, advance)
        return dict(self.problem.gather(outputs, encoded))

    @property
    def writer(self) -> Writer:
        """The model as one that writes; only of a problem that writes."""
        return Writer(self.session, self.tokenizer, self.max_tokens)

    def _written(self, rows: pl.DataFrame, batch_size: int, advance: Callable[[int], None]) -> list[str]:
        """What the model writes for each row's text, without chance: a beginning, or the whole translation."""
        texts = rows[self.problem.inputs[0]].to_list()
        writer = self.writer
        new = self.max_tokens - 1 if writer.translates else min(_NEW_TOKENS, self.max_tokens // 2)
        prompts = writer.prompts(texts, new, cut=True)
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        written = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            asked = order[start : start + batch_size]
            tokens = writer.write([prompts[row] for row in asked], Sampling(max_new_tokens=new))
            for row, text in zip(asked, self.tokenizer.decode_batch(tokens), strict=True):
                written[row] = text
            advance(len(asked))
        return written

    def encoded(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What the model reads of each row, under the row's number: an id may come twice, and a row become several."""
        numbered = pl.DataFrame({**rows.to_dict(), "id": numbers(len(rows))})
        return self.problem.encode(numbered, self.tokenizer, None, self.max_tokens)

    def no_answer_reasons(self, tidied: pl.DataFrame) -> pl.Series:
        """Per row of the problem's inputs why there can be no answer to it; null where there can."""
        inputs = self.problem.inputs
        texts = [name for name in inputs if tidied.schema[name] == pl.String()]
        missing = {name: pl.col(name).is_null() for name in inputs}
        blank = {name: pl.col(name).str.strip_chars() == "" for name in texts}
        unread = [has_no_ascii_letter(name) for name in texts]
        # One look over all instead of several: with a row or two at a time, those would take as long as the model.
        if tidied.select(pl.any_horizontal(*missing.values(), *blank.values(), *unread).any()).item():
            found = tidied.select(
                reason=pl.coalesce(
                    *(pl.when(given).then(pl.lit(f"{name} is missing")) for name, given in missing.items()),
                    *(pl.when(given).then(pl.lit(f"{name} is empty")) for name, given in blank.items()),
                    pl.lit(None, dtype=pl.String),
                    unread_reasons(tidied, texts, self.tokenizer),
                )
            )["reason"]
        else:
            found = pl.Series("reason", [None], dtype=pl.String).new_from_index(0, len(tidied))
        if not self.problem.reads_whole or not found.null_count():
            return found
        whole = found.is_null().arg_true()
        is_cut = self.encoded(tidied[whole].select(inputs))["truncated"]
        return found.scatter(whole.filter(is_cut), too_long_reason(inputs, self.max_tokens))

    def predict(self, rows: pl.DataFrame, batch_size: int = 64) -> pl.DataFrame:
        """The answers to rows as a caller has them."""
        return self.answer(self.tidied(rows), batch_size)

    def tidied(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows as those were tidied that the model has learned from. Once only: `&amp;lt;` is not `<`."""
        columns = [name for name in self.problem.texts if name in self.problem.inputs]
        looks = [look for name in columns for look in (untidy(name, self.tidy), suspect(name, self.tidy.redact))]
        # One look over all instead of a dozen: with a row or two at a time, those would take as long as the model.
        if not columns or not rows.select(pl.any_horizontal(looks).any()).item():
            return rows
        return redact(normalised(rows, columns, self.tidy), columns, self.tidy.redact, self.tidy.phone_regions)[0]

    def answer(self, rows: pl.DataFrame, batch_size: int = 64) -> pl.DataFrame:
        """The answers to rows that are tidied."""
        return self.problem.answer(rows, self.outputs(rows, batch_size), self.signature, self.calibration)


def numbers(num_rows: int) -> pl.Series:
    """An id for each row: its place, from 0 on."""
    return pl.Series("id", list(map(str, range(num_rows))), dtype=pl.String)


def load_runtime(folder: Path, threads: int) -> Runtime:
    """Open an exported model. Raises DataError naming the file that is missing, damaged, or of another time."""
    from tokenizers import Tokenizer

    for name in FILES:
        if not (folder / name).exists():
            raise DataError(f"{folder / name} is not here, so {folder} is not a whole exported model. Run `dvc repro`.")
    facts = read_json(folder / "runtime.json")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust side raises Exception itself
        raise DataError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
    problem, session = problems.load(facts["problem"]), open_session(folder / "model.onnx", threads)
    if problem.decoding and not any(given.name.startswith(KEPT) for given in session.get_inputs()):
        raise DataError(
            f"{folder / 'model.onnx'} keeps what it has written as one array, and is read with one for each layer. "
            "Export it again: `mill run`."
        )
    return Runtime(
        problem=problem,
        signature=facts["signature"],
        tidy=Tidy.model_validate(facts["tidy"]),
        calibration=facts["calibration"],
        max_tokens=facts["max_tokens"],
        pad_id=facts["pad_id"],
        session=session,
        tokenizer=tokenizer,
    )


def open_session(path: Path, threads: int) -> "InferenceSession":
    """An ONNX Runtime session on the processor, with a fixed number of threads so that sums have one order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(_SLOWER)
        )
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise DataError(f"{path} cannot be loaded as an ONNX model: {error}") from None


def run(
    session: "InferenceSession",
    problem: Problem,
    encoded: pl.DataFrame,
    pad_id: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, NDArray[Any]]:
    """Run encoded rows in batches of like length, and give the arrays in their own order.

    `advance` hears of rows as they were before a long one became several.

    Dynamic int8 quantisation draws its scales from a whole batch, so a row's numbers depend a little on its batch
    mates; batches are therefore cut the same way each time.
    """
    order = np.argsort(encoded["input_ids"].list.len().to_numpy(), kind="stable")
    begins, by_length = begins_row(encoded)[order], encoded[order]
    names = list(problem.outputs)
    wanted = [given.name for given in session.get_inputs()]
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(order), batch_size):
        rows = by_length[start : start + batch_size]
        batch = problem.batch(rows, pad_id)
        # A text's beginning finds nothing in the cache.
        feed = {name: batch[name] if name in batch else empty(session, name, len(rows), 0) for name in wanted}
        parts.append(session.run(names, feed))
        advance(int(begins[start : start + batch_size].sum()))
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[i] for part in parts])[back] for i, name in enumerate(names)} if parts else {}
