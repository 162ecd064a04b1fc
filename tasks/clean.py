"""The usable rows: normalised, redacted, without duplicates, each in its split; and what became of all the others.

A row goes for the first of these reasons that it has, looked at in this order:

    no_text, too_short, too_long   of its texts as they are normalised, before redaction; in characters
    no_label, no_split_time        nothing to learn; split.by is time and the row has none
    …                              the problem's own reasons, of targets that do not fit the texts
    conflicting_label              other rows of its partition have the same text and another label
    conflicting_label_with:ID      an earlier partition has the text with another label, or with several
    duplicate_of:ID                an earlier row has the same text
    near_duplicate_of:ID           an earlier row that stays has nearly the same text
    unseen_label                   it is not in the train split, and no row there that stays has its label, or one of
                                   them: nobody learns it. It stays once such a row has come; one with its own text,
                                   or nearly, is a duplicate and does not count as one

Earlier is: in an earlier partition, or in the same with a lower id. So the order of the rows in a partition, and their
shards, do not matter, and a new partition never takes an earlier row away. An ID behind `duplicate_of` or
`conflicting_label_with` may have gone as a near-duplicate itself; one behind `near_duplicate_of` stays, but where its
label is unseen.

Texts go by one shard at a time, and wait on disk. What is held of every row is its id, its label, and hashes.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.duplicates import conflicts, duplicate_reasons, repeated, text_hashes
from tasks.errors import DataError
from tasks.neighbours import Sketches
from tasks.normalise import normalised
from tasks.params import Clean, Tidy
from tasks.parts import Parts
from tasks.problems import Problem, label_lists
from tasks.progress import progress
from tasks.redact import redact
from tasks.shards import Shard, ShardWriter, atomic_folder, read_shards, require_space, write_json, write_parquet
from tasks.splits import SPLIT, SPLITS, draw

REASONS = (
    "no_text",
    "too_short",
    "too_long",
    "no_label",
    "no_split_time",
    "conflicting_label",
    "conflicting_label_with",
    "duplicate_of",
    "near_duplicate_of",
    "unseen_label",
)

# Beside the shards: every row that went, with its partition and its reason.
DROPPED = "dropped.parquet"

_ROWS_PER_SHARD = 20_000

# What is worked on at once: the words of a few megabytes already take many times that.
_SLICE_BYTES = 4_000_000
_SLICE_ROWS = 16_384
_ROWS_AT_A_TIME = 5_000

# On disk: texts uncompressed, and the result; then what is kept of every row to compare it.
_SPACE_PER_BYTE = 6
_SPACE_PER_ROW = 1_000

# Those that a row has by itself.
_ROW_REASONS = REASONS[:5]

_DROPPED_COLUMNS = {"id": pl.String(), "partition": pl.UInt32(), "reason": pl.String()}

_NO_LINES = pl.DataFrame(
    schema={
        "id": pl.String,
        "label": pl.Categorical,
        "split": SPLIT,
        "partition": pl.UInt32,
        "text_1": pl.UInt64,
        "text_2": pl.UInt64,
    }
)


def clean(valid: Path, kept: Path, tally: Path, *, params: Clean, problem: Problem) -> None:
    """Write the usable rows with their `split` to `kept`, and to `tally` what became of every row.

    `kept` is in the order partition, then id. Beside its shards stands `dropped.parquet`: `id`, `partition` and
    `reason` of every row that went. In the tally, `rows_in` is `rows_kept` and all of `dropped` together; `redacted`
    counts pseudonyms, those in duplicates among them.

    Raises DataError where fewer than `min_rows` rows are left, or none in one of the splits.
    """
    shards = read_shards(valid)
    num_rows = sum(shard.rows for shard in shards)
    num_bytes = sum(shard.path.stat().st_size for shard in shards if shard.path.exists())
    require_space(kept.parent, _SPACE_PER_BYTE * num_bytes + _SPACE_PER_ROW * num_rows)
    with atomic_folder(kept) as folder:
        work = folder / "work"
        work.mkdir()
        sifted = _sift(shards, num_rows, work, params, problem)
        stays, dropped, torn = _decide(sifted, problem)
        counts = _count(num_rows, stays, dropped, problem)
        write_json(tally, {**counts, "conflicts": torn, "redacted": sifted.redacted})
        _require_enough(valid, counts, params)
        write_parquet(folder / DROPPED, dropped)
        del dropped  # where most rows go it is large, and writing takes memory
        _write_rows(folder, sifted, stays.select("number", "split"), params)
        shutil.rmtree(work)


@dataclass
class _Sifted:
    """What is known when every shard was read once. Rows that may stay are numbered as they came."""

    parts: Parts
    sketches: Sketches | None
    redacted: dict[str, int]
    schema: pl.Schema = field(default_factory=pl.Schema)
    lines: list[pl.DataFrame] = field(default_factory=list)  # of rows that may stay: what `_decide` compares
    dropped: list[pl.DataFrame] = field(default_factory=list)


def _sift(shards: Sequence[Shard], num_rows: int, work: Path, params: Clean, problem: Problem) -> _Sifted:
    """Tidy one slice of a shard after the other, and leave in `work` the rows that may stay."""
    near = params.near_duplicates
    sifted = _Sifted(Parts(work), Sketches(work, near) if near else None, dict.fromkeys(params.redact, 0))
    with progress("clean: tidy", num_rows, "rows") as advance:
        for shard in shards:
            _sift_shard(shard, sifted, params, problem, advance)
    return sifted


def _sift_shard(shard: Shard, sifted: _Sifted, params: Clean, problem: Problem, advance: Callable[[int], None]) -> None:
    """A function of its own, so that a shard's rows are gone before the next one's are read."""
    partition = pl.lit(_partition_of(shard.path), dtype=pl.UInt32)
    for some in _slices(_read(shard, sifted), problem.texts):
        tidied, line = tidy(some, params, problem)
        line = line.with_columns(partition=partition)
        line, raw, tidied = _without_those_that_go(line, some, tidied, sifted)
        tidied, counts = redact(tidied, _all_texts(problem), params.redact, params.phone_regions)
        tidied, reasons = problem.realign(raw, tidied)
        line, _, tidied = _without_those_that_go(line.with_columns(reason=reasons), raw, tidied, sifted)
        texts = tidied.select(pl.concat_str(problem.texts, separator="\x1f")).to_series()
        sifted.lines.append(pl.concat([line.drop("reason"), text_hashes(texts)], how="horizontal"))
        sifted.parts.add(tidied)
        if sifted.sketches is not None:
            sifted.sketches.add(texts)
        for kind, number in counts.items():
            sifted.redacted[kind] += number
        advance(len(some))


def _without_those_that_go(
    line: pl.DataFrame, raw: pl.DataFrame, tidied: pl.DataFrame, sifted: _Sifted
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The three frames without the rows whose line has a reason, which are noted."""
    stays = line["reason"].is_null()
    sifted.dropped.append(line.filter(~stays).select(_DROPPED_COLUMNS.keys()))
    return line.filter(stays), raw.filter(stays), tidied.filter(stays)


def _all_texts(problem: Problem) -> tuple[str, ...]:
    return (*problem.texts, *problem.target_texts)


def tidy(rows: pl.DataFrame, params: Clean, problem: Problem) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with their texts normalised, and a line for each: `id`, `label`, `split`, and the `reason` why it goes.

    The reason is null where a row may stay. All labels are "" where the problem has none.
    """
    rows = normalised(rows, _all_texts(problem), params)
    num_chars = [pl.col(column).str.len_chars() for column in problem.texts]
    lines = rows.select(
        pl.col("id").cast(pl.String),
        label=_label(problem).cast(pl.Categorical),
        split=draw(rows, params.split),
        no_text=pl.any_horizontal(length.is_null() for length in num_chars),
        too_short=pl.any_horizontal(length < params.min_chars for length in num_chars),
        too_long=pl.any_horizontal(length > params.max_chars for length in num_chars),
    ).with_columns(no_label=pl.col("label").is_null(), no_split_time=pl.col("split").is_null())
    reason = pl.coalesce(pl.when(name).then(pl.lit(name)) for name in _ROW_REASONS)
    return rows, lines.select("id", "label", "split", reason=reason)


def _label(problem: Problem) -> pl.Expr:
    """What two rows with one text contradict each other by: of several labels, the order says nothing."""
    if problem.label is None:
        return pl.lit("")
    label = pl.col(problem.label).cast(pl.String)
    if problem.separator is None:
        return label
    return label.str.split(problem.separator).list.sort().list.join(problem.separator)


def _decide(sifted: _Sifted, problem: Problem) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """The rows that stay in their order, all that went with their reasons, and how many contradict each other."""
    together = pl.concat([_NO_LINES, *sifted.lines]).with_row_index("number")
    sifted.lines.clear()
    order = together.select(pl.arg_sort_by("partition", "id")).to_series()
    # One column after the other, so that there are never two of all.
    lines = pl.DataFrame([together.drop_in_place(column).gather(order) for column in together.columns])
    _require_unique(lines["id"])
    reasons = duplicate_reasons(lines)
    alone = reasons.is_null().arg_true().to_numpy().astype(np.int64)  # no other row has their text
    near = _earliest_near(lines["number"].to_numpy()[alone].astype(np.int64), sifted.sketches)
    stays = lines[alone[near < 0]]
    is_unseen = _has_unseen_label(stays, problem)
    earlier = lines["id"].gather(alone[near[near >= 0]])
    dropped = [
        *sifted.dropped,
        lines.select("id", "partition").with_columns(reasons).drop_nulls("reason"),
        lines.select("id", "partition")[alone[near >= 0]].with_columns(reason="near_duplicate_of:" + earlier),
        stays.filter(is_unseen).select("id", "partition", reason=pl.lit("unseen_label")),
    ]
    stays = stays.filter(~is_unseen).select("number", "label", "split")
    return stays, pl.concat(dropped).sort("partition", "id"), conflicts(lines, reasons)


def _has_unseen_label(rows: pl.DataFrame, problem: Problem) -> pl.Series:
    """Whether a row has a label that no row of the train split has."""
    is_learned = rows["split"].cast(pl.String) == "train"
    if problem.label is None or not is_learned.any():
        return pl.repeat(False, len(rows), eager=True, dtype=pl.Boolean)
    written = rows["label"].cast(pl.String)
    kinds = written.unique().sort()  # there are few, and many rows
    each = pl.DataFrame([kinds.alias("kind"), label_lists(kinds, problem).alias("label")]).explode("label").drop_nulls()
    learned = each.filter(pl.col("kind").is_in(written.filter(is_learned).unique().implode()))["label"]
    return written.is_in(each.filter(~pl.col("label").is_in(learned.implode()))["kind"].implode())


def _earliest_near(numbers: NDArray[np.int64], sketches: Sketches | None) -> NDArray[np.int64]:
    """For rows from the earliest to the latest, the place of the earliest that stays and is near, or −1."""
    if sketches is None:
        return np.full(len(numbers), -1)
    with progress("clean: compare", sketches.num_bands, "bands") as advance:
        return sketches.earliest_near(numbers, advance)


def _count(num_rows: int, stays: pl.DataFrame, dropped: pl.DataFrame, problem: Problem) -> dict[str, Any]:
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        labels = stays.filter(pl.col("split") == split)["label"]
        splits[split] = {"rows": len(labels)}
        if problem.label is not None:
            counted = labels.value_counts().with_columns(pl.col("label").cast(pl.String))
            each = counted.with_columns(label_lists(counted["label"], problem).alias("label")).explode("label")
            by_label = each.drop_nulls().group_by("label").agg(pl.col("count").sum())
            splits[split]["labels"] = dict(by_label.iter_rows())
    return {
        "rows_in": num_rows,
        "rows_kept": len(stays),
        "dropped": {
            reason: int(dropped["reason"].str.contains(f"^{reason}(?::|$)").sum())
            for reason in (*REASONS, *problem.reasons)
        },
        "splits": splits,
    }


def _write_rows(folder: Path, sifted: _Sifted, stays: pl.DataFrame, params: Clean) -> None:
    """The rows in their order, one shard after the other, and in the manifest how their texts were tidied."""
    writer = ShardWriter(folder, _ROWS_PER_SHARD, {**sifted.schema, "split": pl.String()})
    with progress("clean: write", len(stays), "rows") as advance:
        for some in stays.iter_slices(_ROWS_AT_A_TIME):
            rows = sifted.parts.read(some["number"].to_numpy().astype(np.int64))
            writer.write(rows.with_columns(some["split"].cast(pl.String)))
            advance(len(some))
    writer.finish(tidy={name: getattr(params, name) for name in Tidy.model_fields})


def _read(shard: Shard, sifted: _Sifted) -> pl.DataFrame:
    """The shard's rows by id, if its columns are those of the shards before it."""
    rows = shard.read()
    if "split" in rows.columns:
        raise DataError(
            f"{shard.path} has a column 'split', which clean writes. Give it another name in collect.columns."
        )
    if sifted.schema and rows.schema != sifted.schema:
        raise DataError(
            f"{shard.path} has the columns {_described(rows.schema)}; the shards before it have "
            f"{_described(sifted.schema)}. Run collect and validate again."
        )
    sifted.schema = rows.schema
    return rows.sort("id")  # so that rows which will stand together are read together from their parts


def _described(schema: pl.Schema) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in schema.items())


def _partition_of(path: Path) -> int:
    """The number in a shard's name, p00002-00000.parquet."""
    match = re.fullmatch(r"p(\d+)-\d+\.parquet", path.name)
    if match is None:
        raise DataError(f"{path}: a shard's name gives its partition, as in p00002-00000.parquet. Run validate again.")
    return int(match[1])


def _slices(rows: pl.DataFrame, texts: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows in pieces of about `_SLICE_BYTES` of text, or one row where it alone has more."""
    sizes = rows.select(pl.sum_horizontal(pl.col(column).str.len_bytes() for column in texts)).to_series()
    ends = sizes.fill_null(0).cum_sum().to_numpy()
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + _SLICE_BYTES, side="right"))
        end = min(max(end, start + 1), start + _SLICE_ROWS)
        yield rows.slice(start, end - start)
        start = end


def _require_unique(ids: pl.Series) -> None:
    # By their hashes first, which takes less memory than to compare all of them.
    suspects = ids.filter(repeated(ids.hash().to_numpy()))
    several = suspects.filter(suspects.is_duplicated())
    if len(several):
        raise DataError(
            f"{several.n_unique():,} ids stand for more than one row, {several[0]!r} among them. Collect gives every "
            "row an id of its own: run collect and validate again."
        )


def _require_enough(valid: Path, counts: Mapping[str, Any], params: Clean) -> None:
    went = ", ".join(f"{number:,} {reason}" for reason, number in counts["dropped"].items() if number) or "none"
    found = f"{counts['rows_kept']:,} usable rows of {counts['rows_in']:,} (dropped: {went})"
    if counts["rows_kept"] < params.min_rows:
        raise DataError(
            f"{valid}: {found}; clean.min_rows asks for {params.min_rows:,}. Collect more rows, or change "
            "the setting of clean that drops them."
        )
    empty = [split for split in SPLITS if not counts["splits"][split]["rows"]]
    if empty:
        raise DataError(
            f"{valid}: {found}, and none of them is in the split {' or '.join(empty)}. Change clean.split in "
            "params.yaml, or collect more rows."
        )
