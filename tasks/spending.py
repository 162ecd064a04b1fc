"""Which test rows may decide, and with which error: every look at a test set costs a share of what it has.

- One decision spends `alpha / uses`, whatever comes of it, so that over all uses of a test set the chance of a wrong
  promotion stays below `alpha` (Bonferroni's inequality: it holds however the decisions depend on each other).
- A test set is the rows of its first decision, and all that have joined it since: one that has grown is the same one,
  and what it has spent stays spent. Its name is a hash of its first rows.
- Rows are told apart by their ids and by what they say: a row that comes back under another id has been looked at.
- A test set that has spent everything is worn out. Its rows decide nothing any more, and the next one is made of those
  that no decision has looked at: rows that have arrived since, and what `rows` in params has kept back.

So two test sets share no row, and a fresh one knows nothing of what was decided before. What this cannot know is a
person who reads the rows of a report and mends the training by them: that is a look as well.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Of each mark so many bytes are kept: beside a million known rows one in half a million is taken for one of them.
_MARK_BYTES = 5

# Shares of alpha are sums of floats.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TestSet:
    """The rows that decide now, and with which error: 0 where everything is spent and no fresh row is left."""

    __test__ = False  # pytest takes the name for a test's

    name: str
    chosen: Mask  # of all rows that were asked about
    level: float
    uses_before: int
    spent_before: float
    follows: str | None  # the test set that is worn out, where this one begins in its place
    num_used_up: int  # rows of other test sets
    num_kept_back: int  # rows that are kept for the next test set


def marks_of(rows: pl.DataFrame, inputs: Sequence[str]) -> pl.DataFrame:
    """Two short hashes of each row: `id`, and `content`, for which case and white space do not matter."""
    content = rows.select(
        pl.concat_str(
            [pl.col(name).cast(pl.String).str.to_lowercase().str.replace_all(r"\s+", " ") for name in inputs],
            separator="\x1f",
            ignore_nulls=True,
        ).str.strip_chars()
    ).to_series()
    return pl.DataFrame(
        {
            "id": pl.Series([_mark(f"id:{row}") for row in rows["id"]], dtype=pl.String),
            "content": pl.Series([_mark(f"content:{text}") for text in content], dtype=pl.String),
        }
    )


def among(marks: pl.DataFrame, known: Collection[str]) -> Mask:
    """Which rows are known, by their id or by what they say."""
    either = pl.Series(sorted(known), dtype=pl.String).implode()
    return marks.select(pl.col("id").is_in(either) | pl.col("content").is_in(either)).to_series().to_numpy()


def all_of(marks: pl.DataFrame) -> frozenset[str]:
    """The marks of some rows, to know them again."""
    return frozenset(marks["id"]) | frozenset(marks["content"])


def choose(
    marks: pl.DataFrame,
    used: Mapping[str, Collection[str]],
    decisions: Sequence[Mapping[str, Any]],
    *,
    alpha: float,
    uses: int,
    most_rows: int | None,
) -> TestSet:
    """The rows that decide next. `used` are the marks of each test set so far, `decisions` all that were made.

    Those of the test set in use come first, then others by the hash of their ids, up to `most_rows`.
    """
    known = (name for name in _latest_first(decisions) if name in used)
    not_worn_out = (name for name in known if has_left(decisions, name, alpha=alpha, uses=uses))
    open_name = next((name for name in not_worn_out if _any(marks, used[name])), None)
    others_N = among(marks, frozenset().union(*(known for name, known in used.items() if name != open_name)))
    own_N = among(marks, used[open_name]) if open_name else np.zeros(len(marks), dtype=np.bool_)
    chosen_N = _first(marks, own_N, ~others_N, most_rows)
    name = open_name or f"set-{_digest(marks.filter(chosen_N))}"
    return TestSet(
        name=name,
        chosen=chosen_N,
        level=alpha / uses if chosen_N.any() else 0.0,
        uses_before=sum(1 for decision in decisions if _is_of(decision, name)),
        spent_before=_spent(decisions, name),
        follows=next(iter(_latest_first(decisions)), None) if open_name is None and others_N.any() else None,
        num_used_up=int(others_N.sum()),
        num_kept_back=int((~others_N & ~chosen_N).sum()),
    )


def has_left(decisions: Sequence[Mapping[str, Any]], name: str, *, alpha: float, uses: int) -> bool:
    """Whether a test set has error left for one more decision; without, it is worn out."""
    return _spent(decisions, name) + alpha / uses <= alpha + _ROUNDING


def joined(used: Mapping[str, Collection[str]], test_set: TestSet, marks: pl.DataFrame) -> dict[str, frozenset[str]]:
    """The marks of each test set after a decision on this one."""
    own = frozenset(used.get(test_set.name, ())) | all_of(marks.filter(test_set.chosen))
    return {**{name: frozenset(known) for name, known in used.items()}, test_set.name: own}


def packed(used: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Marks as JSON holds them; Git keeps what one decision adds to those before."""
    return {name: "".join(sorted(known)) for name, known in used.items()}


def unpacked(content: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The marks that `packed` wrote."""
    width = 2 * _MARK_BYTES
    return {
        name: frozenset(text[start : start + width] for start in range(0, len(text), width))
        for name, text in content.items()
    }


def _latest_first(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The test sets that have decided."""
    return list(dict.fromkeys(str(made["test_set"]) for made in reversed(decisions) if made.get("alpha_spent")))


def _any(marks: pl.DataFrame, known: Collection[str]) -> bool:
    return bool(among(marks, known).any())


def _first(marks: pl.DataFrame, own_N: Mask, usable_N: Mask, most_rows: int | None) -> Mask:
    order = marks.select(own=pl.lit(pl.Series(own_N)), id="id").with_row_index("row").filter(usable_N)
    rows = order.sort("own", "id", descending=[True, False])["row"].head(len(marks) if most_rows is None else most_rows)
    chosen_N = np.zeros(len(marks), dtype=np.bool_)
    chosen_N[rows.to_numpy()] = True
    return chosen_N


def _spent(decisions: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(decision["alpha_spent"] for decision in decisions if _is_of(decision, name)))


def _is_of(decision: Mapping[str, Any], name: str) -> bool:
    return decision.get("test_set") == name and bool(decision.get("alpha_spent"))


def _digest(marks: pl.DataFrame) -> str:
    return hashlib.sha256("".join(sorted(marks["id"])).encode()).hexdigest()[:8]


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_MARK_BYTES).hexdigest()
