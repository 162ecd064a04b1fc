"""What is wrong with a window's rows themselves, and how long their answers took: counts, whatever has drifted."""

from collections.abc import Mapping
from typing import Any

import polars as pl

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MISSING = "missing_"


def faults(rows: pl.DataFrame, described: pl.DataFrame, inputs: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """What is wrong with each of a window's rows, as bools.

    `missing_<input>`, null or blank; `repeated`, inputs that the window has had before; `redacted`;
    `without_embedding`; an answer `without_confidence`. `described` are the descriptors of the same rows.
    """
    looks = {f"{_MISSING}{name}": _is_missing(name, kind) for name, kind in inputs.items()}
    looks["repeated"] = ~pl.struct(inputs.keys()).is_first_distinct() if inputs else pl.lit(value=False)
    looks["without_embedding"] = ~pl.col("has_embedding")
    if "probability" in rows.columns:
        sure = pl.col("probability")
        looks["without_confidence"] = sure.is_null() | sure.is_nan() | (sure < 0) | (sure > 1)
    found = rows.select(look.fill_null(value=False).alias(name) for name, look in looks.items())
    if "num_redacted" in described.columns:
        found = found.with_columns(redacted=described["num_redacted"] > 0)
    return found


def data_health(found: pl.DataFrame, described: pl.DataFrame, reference: pl.DataFrame) -> dict[str, Any]:
    """The shares of rows with each of `faults`, those of missing inputs by name; and of `rows`, how many there are.

    Besides, the shares `outside` of what the reference's held-out rows have, by descriptor.
    """
    shares = {name: _share(found, pl.col(name)) for name in found.columns}
    missing = {name: share for name, share in shares.items() if name.startswith(_MISSING)}
    return {
        "rows": len(found),
        "missing": {name.removeprefix(_MISSING): share for name, share in missing.items()},
        "outside": _outside(described, reference),
        **{name: share for name, share in shares.items() if name not in missing},
    }


def latency(rows: pl.DataFrame) -> dict[str, float]:
    """Milliseconds from a request to its answer: p50, p95, p99 and the longest."""
    taken = rows["latency_ms"]
    quantiles = {name: taken.quantile(quantile, "nearest") for name, quantile in _QUANTILES.items()}
    longest = {"longest": taken.max()}
    return {name: round(float(value), 3) for name, value in (quantiles | longest).items() if isinstance(value, float)}


def failures(before: Mapping[str, float] | None, now: Mapping[str, float] | None) -> dict[str, float] | None:
    """How many requests failed or were sent away since the server's counters were read before; None where unknown.

    The counters are those of the running server, by outcome. They begin at 0 when it starts again.
    """
    if now is None:
        return None
    if before is None or any(now.get(name, 0.0) < count for name, count in before.items()):
        before = {}
    since = {name: count - before.get(name, 0.0) for name, count in now.items()}
    asked = sum(since.values())
    return {
        "requests": asked,
        "failed": since.get("failed", 0.0),
        "sent_away": since.get("sent_away", 0.0),
        "error_rate": round(since.get("failed", 0.0) / asked, 6) if asked else 0.0,
    }


def _outside(described: pl.DataFrame, reference: pl.DataFrame) -> dict[str, float]:
    numbers = [name for name, kind in described.schema.items() if kind.is_numeric() and name in reference.columns]
    found = {}
    for name in numbers:
        low, high = reference[name].min(), reference[name].max()
        found[name] = _share(described, (pl.col(name) < low) | (pl.col(name) > high))
    return {name: share for name, share in found.items() if share}


def _is_missing(name: str, kind: pl.DataType) -> pl.Expr:
    missing = pl.col(name).is_null()
    return missing | (pl.col(name).str.strip_chars() == "") if kind == pl.String() else missing


def _share(rows: pl.DataFrame, which: pl.Expr) -> float:
    return round(rows.select(which.fill_null(value=False).mean()).item() or 0.0, 6)
