"""`mill verify`: make a version again from its commit, its lock and raw data alone, and certify what came out."""

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.agreement import (
    DIFFERENT,
    IDENTICAL,
    ROWS_BY_STEP,
    ROWS_SEEN,
    WITHIN,
    Agreement,
    Moved,
    Off,
    compare,
    where_orders_part,
)
from flows.certificate import NOT_RUN, TAKEN, Certificate, RowsSeen, Stage, describe, write
from flows.git import attempt, blob, check_history
from flows.marks import marks
from flows.outputs import OutputError, bring
from flows.promotion import Wanted, find_wanted
from flows.registry import RegistryError
from flows.reproduction import Out, Step, VerifyError, check_here, clone, install, made, prepare, run_again, steps
from flows.worktree import home_of

DONE, FAILED = 0, 1

KEPT = "kept"

# The stage whose order of rows has to be proved.
TRAIN = "train"


def verify(root: Path, name: str, *, here: bool = False, keep: bool = False) -> int:
    """Make a version again and print its certificate, which stays in .mill/certificates; 0 where all stages agree.

    `here` takes this environment, where its packages are the lock's; `keep` leaves the folder in which it ran. Raises
    MillError where it cannot be made again at all.
    """
    if attempt(root, "rev-parse", "--git-dir").returncode:
        raise RegistryError(f"{root.resolve()} is no Git repository, and versions are tags of one.")
    check_history(root)
    home = home_of(root)
    wanted = find_wanted(home, name)
    called = wanted.version.tag if wanted.version else wanted.release
    mark = marks(home, wanted.model).get(called)
    if mark is not None and not mark.is_reproducible:
        raise VerifyError(f"{called} cannot be made again. {mark.sentence}")
    with _folder(home, called, keep) as work:
        certificate = _certify(home, wanted, called, work, here)
        text = write(certificate, home / ".mill" / "certificates" / called)
        print(f"\n{text}\nIt stands in {home / '.mill' / 'certificates' / called}.", flush=True)
        if keep:
            print(f"The line is kept in {work / 'line'}.")
    return DONE if certificate.agrees else FAILED


def _certify(home: Path, wanted: Wanted, called: str, work: Path, here: bool) -> Certificate:
    started, line, model = time.monotonic(), work / "line", wanted.model
    clone(home, wanted.commit, line)
    planned = steps(line, model)
    _check_made(planned, called)
    python = check_here(line) if here else install(line, work / "environment", print)
    prepare(home, wanted.commit, line, planned)
    code, said = run_again(line, planned, python, print)
    found = _compare(home, wanted.commit, line, planned, made(line, model), work / "before")
    if code and all(stage.agrees for stage in found):
        raise VerifyError(f"The line ended with {code} though every stage is there. It ended with:\n{said.strip()}")
    ran = {stage.name for stage in found if stage.level not in (TAKEN, NOT_RUN)}
    return Certificate(
        called,
        model,
        wanted.release,
        wanted.commit,
        datetime.now(UTC).isoformat(timespec="seconds"),
        round(time.monotonic() - started, 1),
        tuple(found),
        tuple(_rows_seen(home, wanted.commit, line, [step for step in planned if step.name in ran])),
        describe(python, line, model, not here),
    )


def _check_made(planned: list[Step], called: str) -> None:
    for step in planned:
        if any(out.oid is None for out in step.outs):
            raise VerifyError(
                f"dvc.lock of {called} does not say what {step.name} has made, so there is nothing to compare with."
            )


def _compare(
    home: Path, commit: str, line: Path, planned: list[Step], after: Mapping[str, str | None], before: Path
) -> list[Stage]:
    """Every stage in its order; a stage knows whether what it reads has moved."""
    found: dict[str, Stage] = {}
    for step in planned:
        read = [found[name].level for name in step.reads if name in found]
        if step.taken:
            found[step.name] = Stage(step.name, TAKEN, step.taken, ())
        elif any(after.get(out.path) is None for out in step.outs):
            found[step.name] = Stage(step.name, NOT_RUN, "it failed, or one before it did; the reason stands above", ())
        else:
            moved = Moved(inputs=any(level in (WITHIN, DIFFERENT) for level in read))
            files = [one for out in step.outs for one in _of_out(home, commit, line, out, after, before, moved)]
            if any(file.level == WITHIN for file in files):
                # A manifest names the hashes of what has moved beside it.
                again = Moved(moved.inputs, hashed=True)
                files = [_again(one, line, before, again) for one in files]
            levels = {file.level for file in files}
            level = DIFFERENT if DIFFERENT in levels else WITHIN if WITHIN in levels else IDENTICAL
            found[step.name] = Stage(step.name, level, "", tuple(files))
    return list(found.values())


def _of_out(
    home: Path, commit: str, line: Path, out: Out, after: Mapping[str, str | None], before: Path, moved: Moved
) -> Iterator[Agreement]:
    """The files of an output: all of them the same where its hash is."""
    place = line / out.path
    names = sorted(f"{out.path}/{one.relative_to(place).as_posix()}" for one in place.rglob("*") if one.is_file())
    if after[out.path] == out.oid:
        yield from (Agreement(name, IDENTICAL) for name in names or [out.path])
        return
    try:
        _bring_before(home, commit, out, before)
    except OutputError as error:
        yield Agreement(out.path, DIFFERENT, 1, first=Off("its hash", str(out.oid)[:12], f"another. {error}", None))
        return
    was = (before / out.path).rglob("*") if (before / out.path).is_dir() else [before / out.path]
    names += [one.relative_to(before).as_posix() for one in was if one.is_file()]
    yield from (compare(name, before / name, line / name, moved) for name in sorted(set(names) or {out.path}))


def _again(file: Agreement, line: Path, before: Path, moved: Moved) -> Agreement:
    if file.level != DIFFERENT or not (before / file.file).is_file():
        return file
    return compare(file.file, before / file.file, line / file.file, moved)


def _bring_before(home: Path, commit: str, out: Out, before: Path) -> None:
    """What the commit has of an output: from DVC's cache or remote, or a report's bytes from Git."""
    place = before / out.path
    if out.is_cached:
        bring(home, commit, out.path, place if str(out.oid).endswith(".dir") else place.parent)
        return
    names = attempt(home, "ls-tree", "-r", "-z", "--name-only", commit, "--", out.path).stdout.split("\0")
    for name in filter(None, names):
        if (content := blob(home, f"{commit}:{name}")) is not None:
            (before / name).parent.mkdir(parents=True, exist_ok=True)
            (before / name).write_bytes(content)


def _rows_seen(home: Path, commit: str, line: Path, ran: Sequence[Step]) -> Iterator[RowsSeen]:
    """The hashes of the rows that training saw, before and now: of each stage train, and of others that write one."""
    for step in ran:
        reports = [out.path for out in step.outs if out.path.endswith(".json")]
        before = _seen_in([blob(home, f"{commit}:{path}") for path in reports])
        after = _seen_in([(line / path).read_bytes() if (line / path).is_file() else None for path in reports])
        was, now = (str(found.get(ROWS_SEEN, "")) for found in (before, after))
        if was or now or step.name.partition("@")[0] == TRAIN:
            part = where_orders_part(before.get(ROWS_BY_STEP, []), after.get(ROWS_BY_STEP, []))
            yield RowsSeen(step.name, was, now, part)


def _seen_in(texts: Sequence[bytes | None]) -> Mapping[str, Any]:
    """The first report that has such a hash; empty without."""
    for text in texts:
        with contextlib.suppress(ValueError):
            found = json.loads(text or b"")
            if isinstance(found, dict) and ROWS_SEEN in found:
                return found
    return {}


@contextlib.contextmanager
def _folder(home: Path, called: str, keep: bool) -> Iterator[Path]:
    """A new folder to work in, held while it is in use; gone afterwards, unless it is to be kept."""
    place = home / ".mill" / "verify"
    place.mkdir(parents=True, exist_ok=True)
    clear_away(home)
    for number in range(1, 1000):
        work = place / f"{called}-{number}"
        with contextlib.suppress(FileExistsError):
            work.mkdir()
            break
    else:
        raise VerifyError(f"{place} is full of folders. `mill gc` takes those away that nobody needs.")
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield work
            if keep:
                (work / KEPT).touch()
        finally:
            if not (work / KEPT).exists():
                shutil.rmtree(work, ignore_errors=True)


def clear_away(home: Path) -> None:
    """Take away the folders of processes that were killed."""
    for work in (home / ".mill" / "verify").iterdir():
        if (work / KEPT).exists() or not (work / "lock").exists():
            continue
        with (work / "lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
