"""Whether what was made again is what was made before: file by file, to the bit or within tolerances.

Bits are the promise on one kind of processor; on another, sums are rounded otherwise, and what follows from them moves
a little. The tolerances, all of which stand in the certificate:

- A number with a fraction may be off by 1 %, or by 0.005 where it is small.
- A tensor may be off by 2 % of its length (its Frobenius norm).
- What a model computes for a row may be off by 2 % of the largest value, or of 1: golden rows have the same.
- Words, whole numbers and rows must be the same. Only where what a stage reads has already moved may answers flip: up
  to 1 % of the rows of a file, and counts by 1 % or twice their root.
- A hash may be another where the file that it is of was within its tolerance.
- The hash of which rows training saw, in which order, must be the same, always.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.golden import TOLERANCE
from tasks.release import GOLDEN
from tasks.shards import read_json, sha256_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUMBER_SHARE, NUMBER_LEAST = 0.01, 0.005
TENSOR_SHARE = 0.02
ROW_SHARE = 0.01
ROWS_SEEN, ROWS_BY_STEP = "rows_seen_sha256", "rows_seen_by_step"

TOLERANCES = {
    "number": {"share": NUMBER_SHARE, "least": NUMBER_LEAST},
    "tensor": {"share_of_norm": TENSOR_SHARE},
    "computed_of_a_row": {"share_of_largest": TOLERANCE},
    "where_the_inputs_moved": {"share_of_rows": ROW_SHARE, "share_of_a_count": NUMBER_SHARE, "roots_of_a_count": 2},
}

Level = Literal["identical", "within tolerance", "different"]
IDENTICAL: Level = "identical"
WITHIN: Level = "within tolerance"
DIFFERENT: Level = "different"

_HASH = re.compile(r"(?:sha-)?[0-9a-f]{8,128}")
_WORDS = re.compile(r"(?:sha-)?\b[0-9a-f]{8,128}\b|-?\d+\.\d+(?:[eE][-+]?\d+)?|-?\d+")


@dataclass(frozen=True)
class Off:
    """One place in which two files differ: by which share of what it may, or not allowed at all (None)."""

    where: str
    was: str
    now: str
    share: float | None


@dataclass(frozen=True)
class Moved:
    """What may have moved before this file: what its stage reads, and the files that its hashes are of."""

    inputs: bool = False
    hashed: bool = False


@dataclass(frozen=True)
class Agreement:
    """How far a file that was made again is the one before."""

    file: str
    level: Level
    num_off: int = 0
    largest: float = 0.0  # share of the tolerance that is used up
    first: Off | None = field(default=None)

    @property
    def figures(self) -> str:
        """In words: how many places differ, and what is first or furthest."""
        if self.first is None:
            return ""
        first = f"{self.first.where}: {self.first.was} → {self.first.now}"
        if self.level == WITHIN:
            return f"{self.num_off:,} figures are off, at most by {self.largest:.0%} of what is tolerated; {first}"
        return f"{self.num_off:,} differences; first {first}" if self.num_off > 1 else first


def compare(file: str, before: Path, after: Path, moved: Moved) -> Agreement:
    """Compare two files that are called `file`. Of a kind that is not known here, bytes decide."""
    if not before.is_file() or not after.is_file():
        return _different(file, _missing("the file", before.is_file(), after.is_file()))
    if sha256_of(before) == sha256_of(after):
        return Agreement(file, IDENTICAL)
    kind = _KINDS.get(Path(file).suffix)
    if kind is None:
        return _different(file, Off("its bytes", sha256_of(before)[:12], sha256_of(after)[:12], None))
    found = list(kind(before, after, moved))
    wrong = [off for off in found if off.share is None or off.share > 1]
    if wrong:
        return Agreement(file, DIFFERENT, len(wrong), first=wrong[0])
    furthest = max(found, key=lambda off: off.share or 0.0, default=Off("", "other bytes", "the same content", 0.0))
    return Agreement(file, WITHIN, len(found), furthest.share or 0.0, furthest)


def where_orders_part(was: Sequence[str], now: Sequence[str]) -> str:
    """Where the rows that two trainings saw are the same no longer, in words; empty where that is not known.

    Of each some running hashes: "epoch 1, step 20: 3fa85f6457174562".
    """
    both = 0
    for one, other in zip(was, now, strict=False):
        if one != other:
            break
        both += 1
    places = [seen.rpartition(":")[0] for seen in (was if len(was) > both else now)]
    if both == len(places):
        return ""
    if both == min(len(was), len(now)):
        return f"after {places[both - 1]}, where one of them ends" if both else ""
    return f"between {places[both - 1]} and {places[both]}" if both else f"up to {places[0]} already"


def _missing(where: str, was: bool, now: bool) -> Off:
    return Off(where, "there" if was else "not there", "there" if now else "not there", None)


def _different(file: str, off: Off) -> Agreement:
    return Agreement(file, DIFFERENT, 1, first=off)


def _json(before: Path, after: Path, moved: Moved) -> Iterator[Off]:
    computed = before.name == GOLDEN
    yield from _values("", read_json(before), read_json(after), moved, computed)


def _values(where: str, was: Any, now: Any, moved: Moved, computed: bool) -> Iterator[Off]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*was, *now]):
            place = f"{where}.{name}".lstrip(".")
            if name not in was or name not in now:
                yield _missing(place, name in was, name in now)
            elif name == ROWS_SEEN and was[name] != now[name]:
                yield Off(place, str(was[name])[:12], str(now[name])[:12], None)
            elif name == ROWS_BY_STEP and was[name] != now[name]:
                yield Off(f"{place}, {where_orders_part(was[name], now[name])}", "some rows", "others", None)
            else:
                yield from _values(place, was[name], now[name], moved, computed)
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield Off(where, f"{len(was)} entries", f"{len(now)} entries", None)
            return
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _values(f"{where}[{number}]", one, other, moved, computed)
    elif was != now or type(was) is not type(now):
        yield Off(where, _short(was), _short(now), _share(was, now, moved, computed))


def _share(was: Any, now: Any, moved: Moved, computed: bool = False) -> float | None:
    """By which share of what it may two single values differ; None where they may not."""
    if isinstance(was, bool) or isinstance(now, bool):
        return None
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        if not (moved.inputs or isinstance(was, float) or isinstance(now, float)):
            return None
        largest = max(abs(was), abs(now))
        if computed:
            allowed = TOLERANCE * max(1.0, largest)
        elif isinstance(was, int) and isinstance(now, int):
            allowed = max(NUMBER_SHARE * largest, 2 * largest**0.5)
        else:
            allowed = max(NUMBER_SHARE * largest, NUMBER_LEAST)
        return float(abs(was - now) / allowed)
    if isinstance(was, str) and isinstance(now, str):
        if _HASH.fullmatch(was) and _HASH.fullmatch(now):
            return 0.0 if moved.inputs or moved.hashed else None
        return _share_of_text(was, now, moved)
    return None


def _share_of_text(was: str, now: str, moved: Moved) -> float | None:
    """The same of texts: their words must be the same, the numbers in them within tolerance."""
    if _WORDS.split(was) != _WORDS.split(now):
        return None
    shares = [
        _share(_number(one), _number(other), moved)
        for one, other in zip(_WORDS.findall(was), _WORDS.findall(now), strict=True)
        if one != other
    ]
    return None if None in shares else max((share for share in shares if share is not None), default=0.0)


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _text(before: Path, after: Path, moved: Moved) -> Iterator[Off]:
    was, now = (path.read_text(encoding="utf-8", errors="replace").splitlines() for path in (before, after))
    if len(was) != len(now):
        yield Off("its lines", f"{len(was)}", f"{len(now)}", None)
        return
    for number, (one, other) in enumerate(zip(was, now, strict=True), start=1):
        if one != other:
            share = _share_of_text(one, other, moved) if moved.inputs else None  # rows may be text as well
            yield Off(f"line {number}", _short(one), _short(other), share)


def _tensors(before: Path, after: Path, moved: Moved) -> Iterator[Off]:
    from safetensors import safe_open

    with safe_open(before, framework="pt") as was, safe_open(after, framework="pt") as now:
        known = [set(side.keys()) for side in (was, now)]
        for name in sorted(known[0] | known[1]):
            if not all(name in side for side in known):
                yield _missing(name, *(name in side for side in known))
                continue
            pair = [side.get_tensor(name) for side in (was, now)]
            if pair[0].dtype != pair[1].dtype:
                yield Off(name, str(pair[0].dtype), str(pair[1].dtype), None)
            else:
                yield from _arrays(name, *(tensor.double().numpy() for tensor in pair))


def _arrays(name: str, was: "NDArray[np.float64]", now: "NDArray[np.float64]") -> Iterator[Off]:
    import numpy as np

    if was.shape != now.shape:
        yield Off(name, str(was.shape), str(now.shape), None)
    elif not np.array_equal(was, now, equal_nan=True):
        # A bias of zeros has no length; what rounding leaves in it is no share of anything.
        allowed = TENSOR_SHARE * float(np.linalg.norm(was)) + 1e-6 * was.size**0.5
        apart = float(np.linalg.norm(was - now))
        share = apart / allowed if np.isfinite(apart) else None
        yield Off(name, f"{np.linalg.norm(was):.6g}", f"{np.linalg.norm(now):.6g}, {apart:.2g} apart", share)


def _onnx(before: Path, after: Path, moved: Moved) -> Iterator[Off]:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    models = [onnx.load(path) for path in (before, after)]
    weights = [{one.name: numpy_helper.to_array(one) for one in model.graph.initializer} for model in models]
    for model in models:
        del model.graph.initializer[:]
    graphs = [model.SerializeToString(deterministic=True) for model in models]
    if graphs[0] != graphs[1] or weights[0].keys() != weights[1].keys():
        yield Off("its graph", f"{len(models[0].graph.node)} nodes", f"{len(models[1].graph.node)} nodes", None)
        return
    for name in weights[0]:
        yield from _arrays(name, *(side[name].astype(np.float64) for side in weights))


def _rows(before: Path, after: Path, moved: Moved) -> Iterator[Off]:
    import polars as pl

    read = pl.read_parquet if before.suffix == ".parquet" else _read_arrow
    was, now = (read(path) for path in (before, after))
    if was.schema != now.schema or len(was) != len(now):
        yield Off(
            "its rows", f"{len(was):,} of {len(was.columns)} columns", f"{len(now):,} of {len(now.columns)}", None
        )
        return
    for name in was.columns:
        if not was[name].equals(now[name], null_equal=True):
            yield _column(name, was[name], now[name], moved)


def _read_arrow(path: Path) -> Any:
    import polars as pl

    return pl.read_ipc(path)


def _column(name: str, was: Any, now: Any, moved: Moved) -> Off:
    import numpy as np

    inner = was.dtype
    while getattr(inner, "inner", None) is not None:
        inner = inner.inner
    if inner.is_float():
        flat = [np.asarray(_flat(side), dtype=np.float64) for side in (was, now)]
        if flat[0].shape != flat[1].shape or not np.array_equal(np.isnan(flat[0]), np.isnan(flat[1])):
            return Off(f"column {name}", "values", "others missing", None)
        apart = float(np.nanmax(np.abs(flat[0] - flat[1])))
        allowed = TOLERANCE * max(1.0, float(np.nanmax(np.abs(flat[0]))))
        return Off(f"column {name}", "", f"{apart:.2g} apart at most", apart / allowed)
    differ = was.ne_missing(now)
    row = int(differ.arg_max() or 0)
    share = float(differ.mean() or 0.0) / ROW_SHARE
    return Off(f"column {name}, row {row}", _short(was[row]), _short(now[row]), share if moved.inputs else None)


def _flat(column: Any) -> Any:
    while getattr(column.dtype, "inner", None) is not None:
        column = column.explode()
    return column.cast(float).fill_null(float("nan")).to_numpy()


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


_KINDS: Mapping[str, Callable[[Path, Path, Moved], Iterator[Off]]] = {
    ".json": _json,
    ".safetensors": _tensors,
    ".onnx": _onnx,
    ".parquet": _rows,
    ".arrow": _rows,
    ".md": _text,
    ".txt": _text,
    ".csv": _text,
    ".tsv": _text,
    ".jsonl": _text,
    ".yaml": _text,
}
