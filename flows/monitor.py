"""`mill monitor`: judge what a model in use was asked and answered since the last look, and say what follows.

Each whole window of a version's predictions is judged against that version's own release, once. Its figures, its
report and its place in Evidently's history are there before it counts as judged. An alarm becomes an event: with
enough new labels it starts the retrain, with too few it asks for labels and names the rows.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.as_flow import as_flow
from flows.follow_up import follow_up
from flows.monitor_findings import Serving, find, serving_of
from flows.monitor_page import write_page
from flows.monitored import RECORD, Memory, Progress, Watched
from flows.params import Monitor, flows_of, load_flows
from flows.serve import journal_url
from flows.store import current, live_file, read_live, version_folder
from tasks.errors import MillError, ParamsError, ReleaseError
from tasks.health import failures
from tasks.monitor import ALARM, Judged, Subject, judge_window, open_subject, sentence
from tasks.monitor_report import drop_snapshot, keep_snapshot, make_report, save_report
from tasks.quality import right_where_labelled
from tasks.release import Release, read_release
from tasks.shards import write_json
from tasks.windows import Window, Windows, cut, open_windows

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

DONE, ALARMED = 0, 3

WAITING = "waiting"

# More of a backlog become larger windows instead: each further one is a further chance of a false alarm.
MOST_WINDOWS = 10

SHOWN_WINDOWS = 100

Say = Callable[[str], None]


@dataclass(frozen=True)
class Looked:
    """What came of a look: the verdict that stands, a sentence for people, and the page."""

    verdict: str  # ok, watch, alarm; waiting where no window of this version is full yet
    sentence: str
    advice: tuple[str, ...]  # what to do, and what was done
    tests: Sequence[Mapping[str, Any]]  # of the last window
    num_windows: int  # judged in this look
    page: Path

    @property
    def exit_code(self) -> int:
        return ALARMED if self.verdict == ALARM else DONE


def monitor(root: Path, model: str, say: Say = print) -> Looked:
    """Look at a model once, within a flow run of Prefect where there is a server, and say what came of it.

    Raises ParamsError where params.yaml does not say how, ReleaseError where nothing is in use, Busy where another
    monitor is at it.
    """
    params = flows_of(model, root / "params.yaml").monitor
    if params is None:
        raise ParamsError(
            f"params.yaml: flows.models.{model}.monitor is not there, so nothing says what is drift. Write it as the "
            "shipped file has it for reviews."
        )
    watched = Watched(root, model)
    with watched.alone():
        journal = open_windows(journal_url(root, load_flows(root / "params.yaml").journal), model)
        try:
            looked = _as_flow(root, model, lambda: _Look(root, model, params, watched, journal, say).run())
        finally:
            journal.close()
    for line in (looked.sentence, *looked.advice, f"Look at {looked.page}."):
        say(line)
    return looked


def _as_flow(root: Path, model: str, look: Callable[[], Looked]) -> Looked:
    """Within a flow run where a server keeps it: a temporary one would take seconds to start, and forget it."""
    from flows.up import running_api

    api = os.environ.get("PREFECT_API_URL") or running_api(root)
    if api is None:
        return look()
    return as_flow("monitor", model, api, lambda _: _with_artifacts(root, model, look()), _last_state)


def _last_state(looked: Looked) -> "State[Any]":
    """The flow run's last state."""
    from prefect.states import Completed

    return Completed(name=looked.verdict.capitalize(), message=looked.sentence)


def _with_artifacts(root: Path, model: str, looked: Looked) -> Looked:
    """Leave in the flow run what the last window is like, and a link to the page."""
    from prefect.artifacts import create_link_artifact, create_table_artifact

    from flows.addresses import Portal, address_of

    told = [{key: test[key] for key in ("name", "figure", "threshold", "size", "drifted")} for test in looked.tests]
    try:
        if told:
            create_table_artifact(told, key=f"{model}-monitor-drift", description=looked.sentence)
        link = address_of(looked.page, Portal.of(root))
        create_link_artifact(link, link_text=str(looked.page), key=f"{model}-monitor-page")
    except Exception as error:  # it is the look that counts
        print(f"No artifacts in Prefect: {error!r}")
    return looked


@dataclass
class _Look:
    """One look at a model."""

    root: Path
    model: str
    params: Monitor
    watched: Watched
    journal: Windows
    say: Say
    failures: Mapping[str, float] | None = None  # requests since the look before; None where no server tells

    def run(self) -> Looked:
        serving = serving_of(self.root, self.model)
        live, held_up = self._answering(serving)
        before = self.watched.read()
        server = serving.requests if serving else None
        self.failures = failures(before.server, server)
        subjects = {live.version: open_subject(live)}
        pending = self.journal.pending(before.settled, time.time_ns() // 1000)
        memory = before
        for version in pending["version"].unique(maintain_order=True):
            numbers = pending.filter(pl.col("version") == version)["seq"].to_numpy()
            memory = self._look_at(memory, version, numbers, live, subjects)
        memory = self._settled(memory, pending, live)
        memory = replace(memory, server=server if server is not None else before.server)
        self.watched.write(memory)
        for number in self.watched.drop_old(memory, self.params.keep_pages):
            drop_snapshot(self._workspace, self.model, number)
            self.watched.drop_window(number)
        return self._conclude(memory, memory.windows - before.windows, subjects[live.version], pending, held_up)

    def _answering(self, serving: Serving | None) -> tuple[Release, tuple[str, ...]]:
        """The version that answers, and in a sentence why it is another than the one that was put in use.

        Raises ReleaseError where nothing is in use, or where what is cannot be read.
        """
        wanted = read_live(self.root).get(self.model, {}).get("version")
        if wanted is not None and serving is not None and serving.version not in (None, wanted):
            folder = version_folder(self.root, self.model, str(serving.version))
            with contextlib.suppress(MillError):  # somebody else's server, or its folder has gone
                if self._is_late(serving):
                    said = (
                        f"{wanted} was put in use and does not come up, as /readyz and the server's log explain: "
                        f"{serving.version} goes on answering, and is what is looked at."
                    )
                    return read_release(folder), (said,)
        live = current(self.model, self.root)
        if live is None:
            raise ReleaseError(f"No version of {self.model} is in use, so nothing is watched. `mill run {self.model}`.")
        return live, ()

    def _is_late(self, serving: Serving) -> bool:
        """Whether what was put in use should have come up by now. While the server tries again it says no failure."""
        limit = load_flows(self.root / "params.yaml").serve.swap_seconds
        return serving.failed or time.time() - live_file(self.root).stat().st_mtime > limit

    @property
    def _workspace(self) -> Path:
        return self.root / ".mill" / "evidently"

    def _look_at(
        self, memory: Memory, version: str, numbers: Any, live: Release, subjects: dict[str, Subject]
    ) -> Memory:
        """Judge the whole windows of one version."""
        progress = memory.versions.get(version, Progress())
        windows = cut(version, numbers[numbers > progress.judged], self.params.window, MOST_WINDOWS)
        if windows and version not in subjects:
            try:
                folder = version_folder(self.root, self.model, version)
                subjects[version] = open_subject(read_release(folder))
            except MillError as error:
                self.say(f"{self.model}: what {version} has answered cannot be judged any more. {error}")
                return memory
        for window in windows:
            memory = self._judge(memory, window, subjects[version])
        return memory

    def _judge(self, memory: Memory, window: Window, subject: Subject) -> Memory:
        """Judge one window, keep what was found of it, and only then count it as judged."""
        progress = memory.versions.get(window.version, Progress())
        number = memory.windows + 1
        rows = self.journal.rows(window, subject.inputs, subject.answer)
        if len(rows) < 2:  # forgotten in the meantime
            judged = None
        else:
            judged = judge_window(
                subject, rows, self.journal.embeddings, self.params, progress.streak, self.watched.calibration
            )
            self._keep(number, judged, subject, rows)
        streak = judged.record["streak"] if judged else progress.streak
        since = progress.since if progress.streak and streak else window.first
        progress = Progress(window.last, progress.rows + len(rows), streak, since)
        memory = replace(
            memory,
            windows=number if judged else memory.windows,
            versions={**memory.versions, window.version: progress},
        )
        self.watched.write(memory)
        if judged:
            self.say(f"window {number}: {sentence(self.model, judged.record, self.params)}")
        return memory

    def _keep(self, number: int, judged: Judged, subject: Subject, rows: pl.DataFrame) -> None:
        looked_at = rows.filter(pl.col("id").is_in(judged.described["id"].implode()))
        labels = self.journal.labels_of(subject.version, rows["seq"][0], rows["seq"][-1])
        snapshot = make_report(
            subject,
            judged,
            looked_at["latency_ms"].to_list(),
            right_where_labelled(looked_at, labels, subject.runtime.signature, subject.runtime.problem),
            self.failures,
            f"{self.model} window {number}",
        )
        keep_snapshot(snapshot, self._workspace, self.model, number, judged.record["tests"])
        with self.watched.new_window(number) as folder:
            save_report(snapshot, folder)
            write_json(folder / RECORD, {"number": number, "model": self.model, **judged.record})

    def _settled(self, memory: Memory, pending: pl.DataFrame, live: Release) -> Memory:
        """Up to where nothing is left to look at: what a version that is out of use has left over is too little."""
        if pending.is_empty():
            return memory
        of_live = memory.versions.get(live.version, Progress()).judged
        left = pending.filter((pl.col("version") == live.version) & (pl.col("seq") > of_live))
        others = pending.filter(pl.col("version") != live.version)
        versions = dict(memory.versions)
        for version, last in others.group_by("version").agg(pl.col("seq").max()).iter_rows():
            progress = versions.get(version, Progress())
            versions[version] = replace(progress, judged=max(progress.judged, last), streak=0)
        newest = pending["seq"][-1]
        settled = left["seq"][0] - 1 if len(left) else newest
        return replace(memory, settled=max(memory.settled, settled), versions=versions)

    def _conclude(
        self, memory: Memory, num_windows: int, subject: Subject, pending: pl.DataFrame, held_up: tuple[str, ...]
    ) -> Looked:
        """What stands of the version in use: the verdict, what labels say, what follows from it, and the page."""
        history = self.watched.history(memory, SHOWN_WINDOWS)
        last = next((record for record in reversed(history) if record["version"] == subject.version), None)
        progress = memory.versions.get(subject.version, Progress())
        waiting = pending.filter((pl.col("version") == subject.version) & (pl.col("seq") > progress.judged)).height
        if last is None:
            told = f"{self.model}: not enough predictions: {waiting} of {self.params.window}."
        else:
            told = f"{sentence(self.model, last, self.params)} {waiting} of {self.params.window} of the next are there."
        findings = find(self.journal, subject, self.failures, last)
        about = (self.root, self.model, self.params, self.watched, self.journal)
        followed = follow_up(*about, memory, subject, last, findings.num_labels, told)
        self.watched.write(replace(memory, told=followed.told))
        followed = replace(followed, sentences=(*held_up, *followed.sentences))
        page = write_page(*about, subject, told, history, waiting, findings, followed)
        tests = last["tests"] if last else ()
        return Looked(last["verdict"] if last else WAITING, told, followed.sentences, tests, num_windows, page)
