"""What answers: an exported model under ONNX Runtime with its tokenizer. Export checks it, evaluate measures it, deploy
packs it, and predictions come from it, so that what is evaluated is what is served.

A folder that it opens holds `model.onnx`, `tokenizer.json` and `runtime.json` (problem, signature, tidy, max_tokens,
pad_id, calibration, variant).
"""

from collections.abc import Callable, Mapping
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
from tasks.problems._decoder import EMPTY_PLACES
from tasks.problems._text import begins_row
from tasks.redact import redact, suspect
from tasks.shards import read_json
from tasks.writing import Sampling, Writer, empty

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

# Of a continuation that nobody asked to be longer.
_NEW_TOKENS = 32

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
        """All that an answer to clean rows is made of: what `read` gives, and of some a `continuation`."""
        gathered = self.read(rows, batch_size, advance)
        return {**gathered, "continuation": self._continued(rows, batch_size)} if self.problem.decoding else gathered

    def read(
        self, rows: pl.DataFrame, batch_size: int = 64, advance: Callable[[int], None] = lambda _: None
    ) -> dict[str, NDArray[Any]]:
        """The model's arrays for clean rows of `id` and the problem's inputs; `advance` hears of each batch's rows."""
        encoded = self.encoded(rows)
        outputs = run(self.session, self.problem, encoded, self.pad_id, batch_size, advance)
        return dict(self.problem.gather(outputs, encoded))

    @property
    def writer(self) -> Writer:
        """The model as one that writes; only a problem with `decoding` has one."""
        return Writer(self.session, self.tokenizer, self.max_tokens)

    def _continued(self, rows: pl.DataFrame, batch_size: int) -> NDArray[Any]:
        """What the model writes after each row's text, without chance."""
        texts = rows[self.problem.inputs[0]].to_list()
        new = min(_NEW_TOKENS, self.max_tokens // 2)
        prompts = self.writer.prompts(texts, new, cut=True)
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        written = np.full(len(texts), "", dtype=object)
        for start in range(0, len(order), batch_size):
            asked = order[start : start + batch_size]
            tokens = self.writer.write([prompts[row] for row in asked], Sampling(max_new_tokens=new))
            written[asked] = self.tokenizer.decode_batch(tokens)
        return written

    def encoded(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What the model reads of each row, under the row's number: an id may come twice, and a row become several."""
        numbered = rows.with_columns(id=pl.int_range(len(rows)).cast(pl.String))
        return self.problem.encode(numbered, self.tokenizer, None, self.max_tokens)

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


def load_runtime(folder: Path, threads: int) -> Runtime:
    """Open an exported model. Raises DataError naming the file that is missing or damaged."""
    from tokenizers import Tokenizer

    for name in FILES:
        if not (folder / name).exists():
            raise DataError(f"{folder / name} is not here, so {folder} is not a whole exported model. Run `dvc repro`.")
    facts = read_json(folder / "runtime.json")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust side raises Exception itself
        raise DataError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
    return Runtime(
        problem=problems.load(facts["problem"]),
        signature=facts["signature"],
        tidy=Tidy.model_validate(facts["tidy"]),
        calibration=facts["calibration"],
        max_tokens=facts["max_tokens"],
        pad_id=facts["pad_id"],
        session=open_session(folder / "model.onnx", threads),
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
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
    begins = begins_row(encoded)
    names = list(problem.outputs)
    wanted = [given.name for given in session.get_inputs()]
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = problem.batch(encoded[rows], pad_id)
        # A text's beginning finds nothing in the cache.
        feed = {
            name: batch[name] if name in batch else empty(session, name, len(rows), EMPTY_PLACES) for name in wanted
        }
        parts.append(session.run(names, feed))
        advance(int(begins[rows].sum()))
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[i] for part in parts])[back] for i, name in enumerate(names)} if parts else {}
