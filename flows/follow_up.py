"""What follows from an alarm: a retrain where enough new labels stand, else a list of rows that are worth labelling.

New are the labels of what the version in use has answered itself: it was made before them, so it has learned from none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from flows.events import NotHeard, emit_drift
from flows.monitored import Memory, Progress, Watched
from flows.params import Monitor, flows_of
from flows.runs import asked_in_vain
from tasks.labelling import worth_labelling
from tasks.monitor import ALARM, Subject, sentence
from tasks.params import load_model
from tasks.shards import atomic_file
from tasks.windows import Windows

_MOST_CANDIDATES = 2_000


@dataclass(frozen=True)
class Followed:
    """What was done: sentences for people, the last drift that was made known, and the file of rows if there is one."""

    sentences: tuple[str, ...] = ()
    told: Mapping[str, Any] | None = None
    wanted: Path | None = None
    num_wanted: int = 0


def follow_up(
    root: Path,
    model: str,
    params: Monitor,
    watched: Watched,
    journal: Windows,
    memory: Memory,
    subject: Subject,
    last: Mapping[str, Any] | None,
    num_labels: int,
    said: str,
) -> Followed:
    """Act on the verdict that stands. `said` is it in words, `last` the record of the last window.

    An alarm is made known once, and again when enough labels have come, and with every so many more: a retrain that
    came to nothing is tried again with what has been learned since. One that ended before it looked, in the cool-down
    for instance, is asked for again as soon as it may begin. What nobody heard is told at the next look.
    """
    if last is None or last["verdict"] != ALARM:
        watched.wanted.unlink(missing_ok=True)
        return Followed(told=memory.told)
    enough = num_labels >= params.min_labels
    since = memory.versions.get(subject.version, Progress()).since
    targets = ", ".join(subject.targets)
    sentences, num_wanted, wanted = [], 0, None
    if enough or not targets:
        watched.wanted.unlink(missing_ok=True)
        if not targets:
            sentences.append(
                f"{model} learns from texts alone, so no labels are asked for. What its source has by now is learned "
                f"by mill retrain {model}"
            )
    else:
        wanted = watched.wanted
        num_wanted = _ask(model, params, watched, journal, subject, since)
        sentences.append(
            f"{num_labels} of {params.min_labels} labels stand that a retrain needs. {watched.wanted} names "
            f"{num_wanted} rows worth labelling: fill in {targets}, delete the other rows, and give it to "
            f"mill feedback {model} {watched.wanted}"
        )
    told, now = memory.told, datetime.now(UTC)
    if is_news(told, subject.version, since, num_labels, params.min_labels) or _is_due_again(root, model, told):
        payload = {
            "told": " ".join([said, *sentences]),
            "version": subject.version,
            "window": last["number"],
            "columns": [test["name"] for test in last["tests"] if test["drifted"]],
            "examples": [example["id"] for example in last["examples"]],
            "labels": num_labels,
            "labels_needed": params.min_labels,
        }
        try:
            emit_drift(root, model, sentence(model, last, params), payload, enough_labels=enough)
        except NotHeard as error:
            sentences.append(str(error))
        else:
            told = {"version": subject.version, "since": since, "enough": enough, "labels": num_labels}
            told |= {"at": now.isoformat()}
            if enough:
                sentences.append(f"{num_labels} new labels stand{_retrain(root, model)}{_if_unread(root, model)}")
    return Followed(tuple(sentences), told, wanted, num_wanted)


def _retrain(root: Path, model: str) -> str:
    """Whether what was made known starts one."""
    if flows_of(model, root / "params.yaml").retrain is not None:
        return ", so a retrain was asked for."
    return f". flows.models.{model}.retrain of params.yaml is null, so nothing starts by itself: mill retrain {model}."


def _if_unread(root: Path, model: str) -> str:
    if load_model(model, root / "params.yaml").feedback is not None:
        return ""
    return (
        f" models.{model}.feedback of params.yaml is null, so it learns from them only as far as the source has them."
    )


def is_news(told: Mapping[str, Any] | None, version: str, since: int, num_labels: int, needed: int) -> bool:
    """Whether this alarm is another than the one that was told, or has come to have enough labels since."""
    if told is None or told["version"] != version or told["since"] != since:
        return True
    return num_labels >= needed and (not told["enough"] or num_labels >= told["labels"] + needed)


def _is_due_again(root: Path, model: str, told: Mapping[str, Any] | None) -> bool:
    if told is None or not told["enough"] or "at" not in told:
        return False
    return asked_in_vain(root, model, datetime.fromisoformat(told["at"]))


def _ask(model: str, params: Monitor, watched: Watched, journal: Windows, subject: Subject, since: int) -> int:
    """Write down the rows of the drifted windows that are worth labelling; how many they are."""
    rows = journal.unlabelled(subject.version, since, subject.inputs, subject.answer, _MOST_CANDIDATES)
    rows = rows.unique(list(subject.inputs), keep="last", maintain_order=True)
    embedding_NE = None
    if subject.reference.projection is not None and len(rows):
        found = journal.embeddings(rows["seq"].to_list())
        if len(found) == len(rows):
            embedding_NE = subject.reference.projection(found)
    sure = rows["probability"].cast(pl.Float64).to_numpy() if "probability" in rows.columns else None
    chosen = worth_labelling(sure, embedding_NE, len(rows), params.ask_labels, params.seed)
    targets = {name: pl.lit(None, dtype=pl.String) for name in subject.targets}
    answered = {f"answered_{name}": pl.col(name) for name in subject.answer if not rows.schema[name].is_nested()}
    table = rows[chosen["place"].to_list()].select("id", *subject.inputs, **answered)
    table = table.select("id", **targets).hstack(table.drop("id")).hstack([chosen["why"]])
    with atomic_file(watched.wanted) as unfinished:
        table.write_csv(unfinished)
    return len(table)
