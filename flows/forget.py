"""`mill forget`: rows that must not be learned from any more, and, with --purge, must not be anywhere.

What happens, and what it costs, is said before it is done. The rows' keys go on a list in Git (tasks/forgotten.py),
which collect reads: no later data has them. A tag forgotten/<model>/<n> marks the versions that saw them. With --purge
they leave DVC's cache and remotes, what is kept below .mill, and the journal; the marked versions can then not be made
again. Every step changes nothing where it was done before: what was cut short is finished by running it again.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.asking import ask_for_retrain
from flows.forgetting import ForgetError, Plan, counted, look, named
from flows.git import LIVE, GitError, attempt, check_live_is_free, check_repository, git, main_branch, tip
from flows.locks import only_one
from flows.marks import set_mark
from flows.objects import Objects, objects_of
from flows.passport import TraceError
from flows.publish import owe, publish
from flows.purge import check_needed, collect_again, purge, remember, remembered
from flows.trace import journal_of
from flows.worktree import clean_up, home_of
from tasks.forgotten import with_keys
from tasks.params import load_model
from tasks.paths import Paths
from tasks.shards import write_text

if TYPE_CHECKING:
    from tasks.journal import Journal

DONE, LEFT = 0, 1


def forget(
    root: Path,
    rows: Sequence[str],
    model: str,
    *,
    why: str,
    purge_too: bool = False,
    yes: bool = False,
    dry_run: bool = False,
) -> int:
    """Forget rows by their ids, and print what is done. The exit code: 1 where something could not be purged.

    Raises MillError where a row is unknown, or where the repository does not allow it; then nothing has changed.
    """
    if not why.strip():
        raise ForgetError("Say why, in words that name nobody: --why 'erasure request 4711'. They are kept in Git.")
    home = home_of(root)
    _check(home)
    params = load_model(model, home / "params.yaml")
    with only_one(home, model, "forgetting rows"), ExitStack() as stack:
        for name in clean_up(home):
            print(f"{name}: the worktree of a run that was killed, taken away.")
        objects = stack.enter_context(objects_of(home))
        journal = _journal(home, stack)
        plan = look(home, model, params, rows, objects, journal)
        if purge_too:
            plan.erasure = plan.holders.erasure(journal)
            plan.erasure.add(remembered(home, model))
            _check_shared(home, plan)
        print("\n".join(plan.description(why, purge_too=purge_too)), flush=True)
        if dry_run:
            return DONE
        if purge_too and not yes:
            _ask()
        _list(home, plan, why)
        if purge_too:
            plan.erasure = remember(home, model, plan.erasure)
            collect_again(home, model, objects)
            check_needed(home, model, plan.erasure, objects)
        print(_mark(home, plan, why, purged=purge_too), flush=True)
        left = _purge(home, plan, objects, journal) if purge_too else []
    if told := publish(home):
        print(told)
    print("\n".join(_then(model, left, ask_for_retrain(home, model, "rows were forgotten"))))
    return LEFT if left else DONE


def _check(home: Path) -> None:
    """Raise GitError where this is no place to say it for all runs to come."""
    check_repository(home)
    check_live_is_free(home)
    branch, main = attempt(home, "symbolic-ref", "--quiet", "--short", "HEAD").stdout.strip(), main_branch(home)
    if branch != main:
        raise GitError(
            f"{home} is on {branch or 'no branch'}, and what is forgotten is said on {main}, from which every run "
            f"starts: git switch {main}"
        )


def _journal(home: Path, stack: ExitStack) -> "Journal | None":
    try:
        return stack.enter_context(journal_of(home))
    except TraceError:  # none was written yet
        return None


def _check_shared(home: Path, plan: Plan) -> None:
    """Raise ForgetError where another model's data of today lies in the same objects: it would lose them."""
    tips = [name for name in (main_branch(home), LIVE) if tip(home, name)]
    for other, paths in plan.holders.needed_by_others(plan.erasure, tips).items():
        raise ForgetError(
            f"{other} has the same bytes in {', '.join(paths)}, and would lose them. Nothing was forgotten. Forget the "
            f"rows there first, without --purge, run its line and commit: mill forget {' '.join(plan.keys[:3])} … "
            f"--model {other}"
        )


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ForgetError("Nothing was done. In a script, say that you have read this: --yes")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ForgetError("Nothing was done.")


def _list(home: Path, plan: Plan, why: str) -> None:
    """Put the keys on the list, take the rows out of what people mend, and commit both."""
    paths = Paths(plan.model, home)
    if plan.new:
        before = paths.forgotten.read_text(encoding="utf-8") if paths.forgotten.exists() else ""
        text = with_keys(before, plan.new, plan.salt, at=f"{datetime.now(UTC):%Y-%m-%d}", why=why)
        write_text(paths.forgotten, text)
    for file in (paths.admissions, paths.admissions.with_name("mend.jsonl")):
        _strike(file, lambda id: plan.holders.wanted.among(pl.Series([str(id)])).item())
    changed = [file.relative_to(home).as_posix() for file in (paths.forgotten, paths.admissions) if file.exists()]
    if git(home, "status", "--porcelain", "--", *changed):
        git(home, "add", "--", *changed)
        message = f"{plan.model}: {counted(len(plan.keys), 'row')} forgotten\n\nWhy: {why}"
        git(home, "commit", "--quiet", "-m", message, "--", *changed)


def _strike(file: Path, is_wanted: Callable[[Any], bool]) -> None:
    """Take the lines of these rows out of a file of mended ones."""
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    kept = [line for line in lines if not (line.strip() and is_wanted(json.loads(line).get("id")))]
    if len(kept) != len(lines):
        write_text(file, "\n".join(kept).strip("\n") + "\n")


def _mark(home: Path, plan: Plan, why: str, *, purged: bool) -> str:
    facts = {
        "model": plan.model,
        "rows": sorted(plan.entries.values()),
        "seen": plan.seen,
        "data": sorted(plan.outputs | plan.erasure.outputs),
        "purged": purged,
        "why": why,
    }
    saw = sorted({name for fates in plan.seen.values() for name in fates})
    how = "forgotten and purged" if purged else "forgotten"
    sentence = f"{plan.model}: {counted(len(plan.keys), 'row')} {how}; {named(saw) or 'no version'} saw them. {why}"
    commit = git(home, "rev-parse", "HEAD")
    name = set_mark(home, plan.model, commit, sentence, facts)
    owe(home, commit)
    return f"{name} says so: {sentence}"


def _purge(home: Path, plan: Plan, objects: Objects, journal: "Journal | None") -> list[str]:
    erasure = plan.erasure
    left = purge(home, plan.model, erasure, plan.holders.wanted, objects, journal)
    print(
        f"Purged: {counted(len(erasure.objects), 'object')}, {counted(len(erasure.files), 'file')}, "
        f"{counted(len(erasure.predictions), 'prediction')}."
    )
    return left


def _then(model: str, left: Sequence[str], asked: str | None) -> list[str]:
    """What is still to do; `asked` is the run of the retrain, where one could be asked for."""
    lines = [f"NOT PURGED: {sentence}" for sentence in left]
    next_is = (
        f"A retrain was asked for: {asked}" if asked else f"Next: mill retrain {model} --why 'rows were forgotten'."
    )
    lines.append(
        f"{next_is} Until its version is promoted, the one in use has learned from them, and `mill status` says so; "
        "where the gate keeps that one, `mill promote VERSION --why …` puts the new one in use. Push main: git push"
    )
    return lines
