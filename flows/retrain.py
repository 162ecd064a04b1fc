"""`mill retrain`: learn from what is new, apart from the person's working tree, and promote what is better.

A worktree of `live` with `main` merged in; pull; the line; the gate; a commit on `retrain/<model>/<time>`; and, where
the gate says so, `live`, the version's tag and the promotion. The decision's tag stands before anything is promoted: a
run that is killed is finished or repeated by the next one, never half of it kept.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows import gating
from flows.artifacts import KEPT_REPORTS
from flows.as_flow import as_flow, is_in_flow_run
from flows.child import mill
from flows.git import attempt, check_live_is_free, check_repository, git, live_of, main_branch, tip
from flows.inputs import INPUTS, digest
from flows.landing import ASK, PROMOTE, finish, land
from flows.locks import only_one
from flows.merge import MergeConflict, merge_by_model
from flows.prefect_api import find_server, silence
from flows.publish import owe, publish
from flows.registry import Version, champion, decisions, record_decision, settle
from flows.results import results_of
from flows.shadow import follow_challenger
from flows.worktree import Worktree, check_out_data, clean_up, home_of, is_decided, worktree
from tasks.paths import Paths
from tasks.release import Release, read_release
from tasks.shards import read_json, write_json

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

KEEP = "keep"
DONE, FAILED, REFUSED = 0, 1, 3

Outcome = Literal["nothing", "promoted", "kept", "ask", "refused", "failed"]
_CODES = {"nothing": DONE, "promoted": DONE, "kept": REFUSED, "refused": REFUSED, "ask": FAILED, "failed": FAILED}
_KEPT_REPORTS = 10


@dataclass(frozen=True)
class RetrainResult:
    """What came of a retrain: its verdict, a sentence for people, and the version or commit where there is one."""

    verdict: Outcome
    sentence: str
    version: str | None = None
    commit: str | None = None

    @property
    def exit_code(self) -> int:
        return _CODES[self.verdict]


def retrain(root: Path, model: str, *, force: bool = False, why: str = "") -> RetrainResult:
    """Retrain a model, print what happens, and give back what came of it.

    With `force` also where nothing is new. `why` (schedule, drift, by hand) is kept in the commit and the tags. Raises
    MillError where the repository does not allow it, where this model is being retrained already, or where a Prefect
    server is named and does not answer; nothing has been done then.
    """
    check_repository(root)
    check_live_is_free(root)
    home, api = home_of(root), None if is_in_flow_run() else find_server(root)
    with only_one(home, model, why) as lock:
        for name in clean_up(home):
            print(f"{name}: the worktree of a run that was killed, taken away.")
        _drop_undecided(home, model)
        for said in settle(home):
            print(said)
        result = _finish(home, model) or _retrain(home, model, api, force=force, why=why or "by hand", lock=lock)
    print(f"\n{result.sentence}", flush=True)
    return result


def _finish(home: Path, model: str) -> RetrainResult | None:
    """Land what was cut short, and send out all that waits; None where nothing was cut short."""
    try:
        version = finish(home, model)
    except MergeConflict as error:
        return RetrainResult("ask", f"{model}: what had been decided on and was cut short is not promoted yet. {error}")
    finally:
        if told := publish(home):
            print(told)
    if version is None:
        return None
    sentence = f"{model}: {version.tag} had been decided on and was cut short; it is the champion now."
    return RetrainResult("promoted", sentence, version.tag, version.commit)


def _retrain(home: Path, model: str, api: str | None, *, force: bool, why: str, lock: int) -> RetrainResult:
    try:
        base = _base(home, model)
    except MergeConflict as error:
        return RetrainResult("ask", f"{model}: nothing was learned and nothing promoted. {error}")
    with worktree(home, model, _new_branch(home, model), base) as tree:
        code, said = mill(tree.folder, ["pull", model], env={}, keep=(lock, tree.lock), say=print)
        if code:
            return RetrainResult("failed", f"{model}: the source could not be looked at. {_last(said)}")
        code, said = mill(tree.folder, ["inputs", model], env={}, keep=(lock, tree.lock), say=print)
        if code and "No such command" in said:
            older = f"{model}: the code of `{main_branch(home)}` is older than what is checked out here"
            return RetrainResult("failed", f"{older}, and does not know what this asks of it. Merge it there first.")
        if code:
            return RetrainResult("failed", f"{model}: nothing can be learned as it stands. {_last(said)}")
        inputs = read_json(tree.folder / INPUTS)
        known = digest(inputs, _release_of(champion(home, model)))
        if not force and (nothing := _nothing_new(home, model, known)):
            return RetrainResult("nothing", nothing)
        run = _Run(home, tree, model, inputs, force, why, lock)
        return as_flow("retrain", model, api, lambda server: _learn(run, known, server), _last_state)


@dataclass(frozen=True)
class _Run:
    """One retrain in its worktree."""

    home: Path
    tree: Worktree
    model: str
    inputs: Mapping[str, Any]
    force: bool
    why: str
    lock: int

    @property
    def paths(self) -> Paths:
        return Paths(self.model, self.tree.folder)

    @property
    def locks(self) -> tuple[int, int]:
        """What its commands inherit, so that nobody takes model or worktree before they have ended."""
        return self.lock, self.tree.lock


def _base(home: Path, model: str) -> str:
    """The commit to start from: `live` with main merged in; main where nothing has been on `live` yet."""
    main = main_branch(home)
    live = live_of(home)
    if live is None:
        return git(home, "rev-parse", f"refs/heads/{main}")
    return merge_by_model(home, live, main, f"Merge {main} for the retraining of {model}")


def _new_branch(home: Path, model: str) -> str:
    name = f"retrain/{model}/{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    others = (name if number == 1 else f"{name}-{number}" for number in range(1, 1000))
    return next(branch for branch in others if tip(home, f"refs/heads/{branch}") is None)


def _drop_undecided(home: Path, model: str) -> None:
    """Delete the branches of runs that were killed before they decided: their inputs are decided on anew.

    A branch that goes on from a decided commit is a person's who brings it together with `live`.
    """
    decided = {decision["commit"] for decision in decisions(home, model)}
    names = git(home, "for-each-ref", "--format=%(refname:short)", f"refs/heads/retrain/{model}/")
    for branch in names.splitlines():
        own = git(home, "rev-list", f"refs/heads/{branch}", "--not", "--exclude=retrain/*", "--branches").splitlines()
        if not is_decided(home, branch) and not decided.intersection(own):
            attempt(home, "branch", "-D", branch)


def _release_of(version: Version | None) -> str | None:
    return version.release if version else None


def _nothing_new(home: Path, model: str, known: str) -> str | None:
    """Why there is nothing to learn, in a sentence; None where there may be something."""
    for decision in reversed(decisions(home, model)):
        if known in (decision["inputs_sha256"], decision.get("inputs_after")):
            return f"{model}: nothing to learn. These inputs were decided on before: {decision['sentence']}"
    memory = _memory(home, model)
    if memory.exists() and read_json(memory).get("nothing_new") == known:
        return f"{model}: nothing to learn. The line has made nothing new from these inputs before."
    return None


def _memory(home: Path, model: str) -> Path:
    return home / ".mill" / "retrain" / f"{model}.json"


def _last_state(result: RetrainResult) -> "State[Any]":
    """The flow run's last state."""
    from prefect.states import Completed, Failed

    if result.verdict == "failed":
        return Failed(message=result.sentence)
    return Completed(name=result.verdict.capitalize(), message=result.sentence)


def _learn(run: _Run, known: str, server: str | None) -> RetrainResult:
    check_out_data(run.tree, run.model)
    try:
        env = {"MILL_RETRAIN": "1", KEPT_REPORTS: str(_pages(run)), **_environment(server)}
        code, said = mill(run.tree.folder, ["run", run.model], env=env, keep=run.locks, say=print)
        if code not in (DONE, REFUSED):
            return RetrainResult("failed", f"{run.model}: the line failed, and the champion stays. {_last(said)}")
        release, now = read_release(run.paths.release), champion(run.home, run.model)
        if nothing := _nothing_made(run, release, now):
            write_json(_memory(run.home, run.model), {"nothing_new": known})
            return RetrainResult("nothing", nothing)
        judged = _judge(run, release)
    finally:
        _keep_pages(run)
    if _release_of(champion(run.home, run.model)) != _release_of(now):
        return RetrainResult("failed", f"{run.model}: the champion changed during the run. Run it again.")
    return _decide(run, release, now, judged)


def _environment(server: str | None) -> dict[str, str]:
    """Where the line shows itself: on the retrain's server, on one of its own where that has gone away meanwhile."""
    if server and not silence(server):
        return {"PREFECT_API_URL": server}
    return {"PREFECT_API_URL": "", "PREFECT_PROFILE": "ephemeral"}


def _nothing_made(run: _Run, release: Release, now: Version | None) -> str | None:
    """Why what the line made is nothing new, in a sentence; None where it is a challenger."""
    if now is not None and release.version == now.release:
        return f"{run.model}: nothing to learn. The line makes the champion, {now.tag}, again."
    for decision in decisions(run.home, run.model):
        same = decision["challenger"] == release.version and decision["champion"] == (now.tag if now else None)
        if same and decision.get("gate") == run.inputs["gate"] and not run.force:
            return f"{run.model}: nothing to learn. {release.version} was decided on before: {decision['sentence']}"
    return None


def _judge(run: _Run, release: Release) -> Mapping[str, Any]:
    """The gate's decision; a release that its own floors refuse does not get there, and uses no test set."""
    if release.accepted:
        return gating.gate_release(run.home, run.tree.folder, run.model, keep=run.locks)
    sentence = f"{release.version} was refused: {' '.join(release.reasons)}"
    return {"verdict": KEEP, "sentence": sentence, "alpha_spent": 0.0, "test_set": None}


def _decide(run: _Run, release: Release, now: Version | None, judged: Mapping[str, Any]) -> RetrainResult:
    """Commit, record the decision, and land what is to be promoted."""
    verdict, sentence = judged["verdict"], judged["sentence"]
    commit = _commit(run, f"{run.model}: {sentence}\n\nWhy: {run.why}.")
    decision = {
        "model": run.model,
        "verdict": verdict,
        "sentence": sentence,
        "inputs_sha256": digest(run.inputs, _release_of(now)),
        # The same inputs again, once the challenger is the champion, are nothing to learn either.
        "inputs_after": digest(run.inputs, release.version),
        "gate": run.inputs["gate"],
        "test_set": judged["test_set"],
        "alpha_spent": judged["alpha_spent"],
        "measured": judged.get("measured"),  # by a clock, so that it is in no report
        "challenger": release.version,
        "champion": now.tag if now else None,
        "forced": run.force,
        "why": run.why,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    owe(run.home, commit)
    record_decision(run.home, commit, decision)
    result = _concluded(run, release, now, decision, commit)
    for told in (follow_challenger(run.home, run.model), publish(run.home, run.tree.folder)):
        if told:
            print(told)
    return result


def _concluded(
    run: _Run, release: Release, now: Version | None, decision: Mapping[str, Any], commit: str
) -> RetrainResult:
    model, sentence = run.model, decision["sentence"]
    stays = f"{now.tag} stays the champion." if now else "There is still no champion."
    if decision["verdict"] == PROMOTE:
        try:
            version = land(run.home, decision, commit, release, run.why)
        except MergeConflict as error:
            return RetrainResult("ask", f"{model}: nothing was promoted. {error}", commit=commit)
        return RetrainResult("promoted", f"{model}: {version.tag} is the champion now. {sentence}", version.tag, commit)
    if not release.accepted:
        return RetrainResult("refused", f"{model}: {sentence} {stays}", commit=commit)
    if decision["verdict"] == ASK:
        how = f"Look at {_pages(run) / 'gate.html'}, and decide: mill promote {release.version} --why '…'"
        return RetrainResult("ask", f"{model}: a person has to decide. {sentence} {stays} {how}", commit=commit)
    return RetrainResult("kept", f"{model}: {sentence} {stays}", commit=commit)


def _commit(run: _Run, message: str) -> str:
    """Commit what the run made, to its branch; the commit."""
    folder, paths = run.tree.folder, Paths(run.model)
    pulled = map(str, (paths.source_pin, paths.feedback_pin, paths.admissions, paths.forgotten, paths.reports))
    made = [*(name for name in pulled if (folder / name).exists()), *results_of(folder, run.model)]
    git(folder, "add", "--update")
    git(folder, "add", "--all", "--", *made, env={"GIT_LITERAL_PATHSPECS": "1"})
    before = git(folder, "rev-parse", "HEAD")
    commit = git(folder, "commit-tree", git(folder, "write-tree"), "-p", before, stdin=message)
    git(folder, "update-ref", "-m", "retrain", f"refs/heads/{run.tree.branch}", commit, before)
    return commit


def _pages(run: _Run) -> Path:
    return run.home / ".mill" / "retrain" / "reports" / run.tree.branch.removeprefix("retrain/")


def _keep_pages(run: _Run) -> None:
    """Keep what people look at, of the last runs: the worktree goes, and Git does not hold it."""
    if not run.paths.reports.is_dir():
        return
    shutil.copytree(run.paths.reports, _pages(run), dirs_exist_ok=True)
    for old in sorted(_pages(run).parent.iterdir())[:-_KEPT_REPORTS]:
        shutil.rmtree(old)


def _last(said: str) -> str:
    """The end of what a command printed; all of it stands in the log."""
    return "\n".join(["It ended with:", *said.strip().splitlines()[-8:]])
