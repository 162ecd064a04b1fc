"""The one committer: all that DVC is asked and told during a run, by one thread, under DVC's own locks.

What `dvc repro` does with a stage is taken apart at its command: before it (is it stale, remove its outputs, look into
the run cache), and after it (hash, cache, dvc.lock). The commands themselves run outside, side by side. DVC's file of
readers and writers holds a stage's files meanwhile, so that nobody's own `dvc` writes to them.
"""

import contextlib
import importlib
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from flows.child import path_of_commands
from flows.commands import Shell
from flows.held import Held
from flows.stages import LineError, Node, address_of, outputs_of, read_graph
from flows.waiting import Patience

if TYPE_CHECKING:
    from dvc.stage import PipelineStage, Stage

T = TypeVar("T")

# What became of a stage without its command: up to date, taken from the run cache, imported, only looked at.
Settled = Literal["cached", "restored", "imported", "verified"]


class Committer:
    """DVC in a repository for one run. Every method may be called from any thread, and waits there for DVC's locks."""

    def __init__(self, root: Path, patience: Patience) -> None:
        self._root, self._patience = root, patience
        # What DVC keeps open, SQLite above all, belongs to the thread that opened it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="committer")
        self._stages: dict[str, Stage] = {}
        self._order: dict[str, int] = {}
        self._added: dict[Path, dict[str, int]] = {}
        self._locks: dict[Path, bytes] = {}
        self._outdated: set[str] = set()

    def __enter__(self) -> Self:
        try:
            self._ask(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._close)
        self._thread.shutdown()

    def plan(self, models: Sequence[str], known: Sequence[str]) -> list[Node]:
        """The stages of a run, as `read_graph` gives them."""
        return self._ask_locked(lambda: self._plan(models, known))

    def sort_out(
        self, waiting: Sequence[Node], ended: Mapping[str, bool], forced: Collection[str]
    ) -> tuple[list[str], list[str]]:
        """Of the waiting stages, in the order of the graph: those up to date, and those that are to run now.

        `ended` are the stages that have, and whether they have succeeded; those found up to date here count as well.
        What cannot be looked at, because others work with it, is to run: `begin` waits for them.
        """
        return self._ask_locked(lambda: self._sort_out(waiting, dict(ended), forced))

    def begin(self, address: str, *, force: bool) -> Settled | Shell:
        """Take a stage as far as its command, which is the caller's to run; or to its end where it needs none.

        Its files are held until `finish` or `leave`, where a command is given back.
        """
        return self._ask_locked(lambda: self._begin(address, force))

    def finish(self, address: str) -> None:
        """Record what a stage's command has made: hashes, cache, run cache, and dvc.lock in DVC's own order."""
        try:
            self._ask_locked(lambda: self._record(address))
        finally:
            self.leave(address)

    def outputs(self, address: str) -> list[dict[str, Any]]:
        """What a stage that has succeeded has made, as `outputs_of` gives it."""
        return self._ask(lambda: outputs_of(self._stages[address]))

    def leave(self, address: str) -> None:
        """Let go of a stage's files."""
        self._ask(lambda: self._held.release(address))

    def _ask_locked(self, work: Callable[[], T]) -> T:
        from dvc.repo import lock_repo

        def locked() -> T:
            with lock_repo(self._repo), self._repo.scm_context(quiet=True):
                return work()

        return self._patience.until_free(lambda: self._ask(locked), self._tmp)

    def _ask(self, work: Callable[[], T]) -> T:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        try:
            return self._thread.submit(work).result()
        except LockError:
            raise
        except DvcException as error:
            raise LineError(_explained(error)) from error

    def _open(self) -> None:
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_warnings_alone(self._patience.say))
        try:
            self._repo: Repo = Repo(str(self._root))
        except NotDvcRepoError:
            self._quiet.close()
            raise LineError(
                f"{self._root.resolve()} is no DVC repository. At the top of the project: dvc init"
            ) from None
        self._tmp = Path(str(self._repo.tmp_dir))
        self._held = Held(self._repo)

    def _close(self) -> None:
        self._held.release_all()
        self._repo.close()
        self._quiet.close()

    def _plan(self, models: Sequence[str], known: Sequence[str]) -> list[Node]:
        nodes, self._stages = read_graph(self._repo, models, known)
        self._order = {node.address: number for number, node in enumerate(nodes)}
        self._locks = {file: _content(file) for file in map(_lock_of, self._stages.values())}
        return nodes

    def _sort_out(
        self, waiting: Sequence[Node], ended: dict[str, bool], forced: Collection[str]
    ) -> tuple[list[str], list[str]]:
        cached, stale = [], []
        for node in (node for node in waiting if node.may_begin(ended)):
            if node.address in forced or self._is_stale(node.address):
                stale.append(node.address)
            else:
                cached.append(node.address)
                ended[node.address] = True
        return cached, stale

    def _is_stale(self, address: str) -> bool:
        from dvc.exceptions import DvcException

        try:
            return bool(self._current(address).changed())
        except DvcException:  # `begin` meets it too, and says it for the stage
            return True

    def _begin(self, address: str, force: bool) -> Settled | Shell:
        stage = self._current(address)
        self._held.take(address, stage)
        # Until it is recorded it knows its new inputs and its old outputs. Were it begun again like this, DVC would
        # take the one for what made the other.
        self._outdated.add(address)
        try:
            found = _prepare(stage, force)
            if isinstance(found, Shell):
                return found
            if found != "cached":
                self._record(address)
        except BaseException:
            self._held.release(address)
            raise
        self._held.release(address)
        return found

    def _record(self, address: str) -> None:
        """What `dvc repro` does after a command."""
        from dvc.stage import PipelineStage

        stage = self._stages[address]
        # DVC copies no output into its cache that it was told not to cache, but for metrics and plots.
        uncached = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not uncached)
        stage.commit()
        file = _lock_of(stage)
        self._notice(file)
        if isinstance(stage, PipelineStage):
            self._write_lock(file, stage, self._order[address])
        else:
            stage.dump(update_pipeline=False)
        self._locks[file] = _content(file)
        self._outdated.discard(address)

    def _write_lock(self, file: Path, stage: "PipelineStage", place: int) -> None:
        """Put a stage into its dvc.lock, where `dvc repro` would have: old entries stay, new ones follow in its order.

        Whoever is killed here leaves the file as it was.
        """
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import modify_yaml

        draft = file.with_name(f".unfinished-{file.name}")
        draft.unlink(missing_ok=True)
        if file.exists():
            shutil.copy(file, draft)
        with modify_yaml(str(draft), fs=self._repo.fs) as lock:
            if not lock:
                lock.update({"schema": "2.0"})
            entries = lock.setdefault("stages", {})
            added = self._added.setdefault(file, {})
            if stage.name not in entries:
                added[stage.name] = place
            entries.update(to_lockfile(stage))
            for name in sorted(added, key=added.__getitem__):
                if name in entries:
                    entries[name] = entries.pop(name)
        draft.replace(file)
        self._repo.scm_context.track_file(stage.dvcfile._lockfile.relpath)

    def _current(self, address: str) -> "Stage":
        """A stage with what its lock says now: somebody's own dvc may have run it meanwhile."""
        self._notice(_lock_of(self._stages[address]))
        if address in self._outdated:
            self._stages[address] = self._stages[address].reload()
            self._outdated.discard(address)
        return self._stages[address]

    def _notice(self, file: Path) -> None:
        """Remember the stages of a lock that somebody else has written to."""
        if (now := _content(file)) != self._locks[file]:
            self._locks[file] = now
            self._outdated |= {address for address, stage in self._stages.items() if _lock_of(stage) == file}


def _prepare(stage: "Stage", force: bool) -> Settled | Shell:
    """What `dvc repro` does before a stage's command."""
    if not force and not stage.changed():
        return "cached"
    if (stage.cmd or stage.is_import) and not stage.frozen:
        stage.remove_outs(ignore_remove=False, force=False)
    if (stage.is_import and not stage.frozen) or stage.is_partial_import:
        stage._sync_import(False, force, None, False)
        return "imported"
    if stage.cmd and not stage.frozen:
        return "restored" if not force and _restored(stage) else _shell(stage)
    stage._check_missing_outputs()
    return "verified"


def _restored(stage: "Stage") -> bool:
    """Take the outputs from DVC's run cache, where it knows a run of this command on these inputs."""
    from dvc.stage.cache import RunCacheNotFoundError

    try:
        stage.repo.stage_cache.restore(stage)
    except RunCacheNotFoundError:
        stage.save_deps()
        return False
    return True


def _shell(stage: "Stage") -> Shell:
    """A stage's command lines as DVC starts them: the person's shell, without its startup files."""
    from dvc.env import DVC_STAGE
    from dvc.stage import run as dvc_run

    lines = tuple(dvc_run._enforce_cmd_list(stage.cmd))
    around: dict[str, Any] = dvc_run.prepare_kwargs(stage)
    executable = dvc_run.get_executable()
    # Output comes line by line, though it goes into a pipe.
    env = {**around["env"], DVC_STAGE: address_of(stage), "PATH": path_of_commands(), "PYTHONUNBUFFERED": "1"}
    return Shell(lines, tuple(dvc_run._make_cmd(executable, line) for line in lines), Path(around["cwd"]), env)


def _lock_of(stage: "Stage") -> Path:
    """The file that holds what DVC knows of a stage: dvc.lock, or the .dvc file itself."""
    path = Path(stage.path)
    return path if path.suffix == ".dvc" else path.with_suffix(".lock")


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _explained(error: Exception) -> str:
    """DVC's message with the causes that it keeps apart."""
    said = [str(error)]
    cause = error.__cause__ or error.__context__
    while cause is not None and str(cause):
        if str(cause) not in said[-1]:
            said.append(str(cause))
        cause = cause.__cause__
    return ": ".join(said)


class _Warnings(logging.Handler):
    """What DVC warns of, said where the run says everything else."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"dvc: {record.getMessage()}")


@contextlib.contextmanager
def _warnings_alone(say: Callable[[str], None]) -> Iterator[None]:
    """What DVC does is said here, and its progress bars would run into the stages' output."""
    levels = {"dvc": logging.WARNING, "dvc_data": logging.WARNING, "dvc_objects": logging.WARNING}
    levels["dvc.progress"] = logging.CRITICAL
    importlib.import_module("dvc")  # it sets levels and handlers of its own
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    former = [(logger, logger.level, logger.handlers) for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
        logger.handlers = [] if "." in logger.name else [_Warnings(say)]
    try:
        yield
    finally:
        for logger, level, handlers in former:
            logger.setLevel(level)
            logger.handlers = handlers
