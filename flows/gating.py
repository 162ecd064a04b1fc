"""The gate at a worktree: the release that its line has made, against the champion of the repository.

Of the champion everything is its own: its release, as exported, and the rows that it has trained on, both as its commit
has them. Which test rows have decided before stands in the commits of the decisions.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from flows.child import mill
from flows.git import attempt
from flows.judging import Case, Contestant, judge
from flows.marks import marks
from flows.params import flows_of
from flows.registry import Version, champion, decisions, fetch
from tasks import problems
from tasks.comparison import direction
from tasks.errors import MillError
from tasks.gate_page import artifact, gate_page
from tasks.params import Model, load_model
from tasks.paths import Paths
from tasks.release import Release, open_release, read_release
from tasks.runtime import load_runtime
from tasks.shards import read_json, read_rows, write_json, write_text
from tasks.spending import all_of, marks_of, packed, unpacked

# Reports: the decision, and the marks of all rows that have decided.
GATE, USED = "gate", "gate_used"


class GateError(MillError):
    """The gate cannot decide: something that it needs is not there."""


def check_gate(model: str, params: Path) -> None:
    """Find a misspelt metric now, and not after the training that it would waste."""
    direction(problems.load(load_model(model, params).problem), flows_of(model, params).gate.metric)


def gate_release(home: Path, folder: Path, model: str, *, keep: Sequence[int] = ()) -> Mapping[str, Any]:
    """Judge the release of the worktree `folder` against the champion of `home`, by the worktree's own code.

    The process that judges inherits the descriptors `keep`: what they lock is locked until it has ended as well.
    The verdict (promote, keep, ask), its sentence, the `test_set`, the `alpha_spent` on it, and what was `measured`. In
    the worktree stand reports/<model>/gate.json, gate_used.json, measured/gate.json and gate.html afterwards. Raises
    GateError where it cannot decide; then nothing has been spent.
    """
    code, said = mill(folder, ["gate", model, "--home", str(home.resolve())], env={}, keep=keep, say=print)
    if code:
        last = "\n".join(said.strip().splitlines()[-8:])
        raise GateError(f"{model} could not be judged, so nothing is decided. It ended with:\n{last}")
    paths = Paths(model, folder)
    report, measured = read_json(paths.report(GATE)), read_json(paths.measured(GATE))
    _leave_artifact(model, artifact(report, measured))
    return {
        "verdict": report["verdict"],
        "sentence": report["sentence"],
        "alpha_spent": report["alpha_spent"],
        "test_set": report["test_set"]["name"] if report["alpha_spent"] else None,
        "measured": measured,
    }


def judge_release(home: Path, folder: Path, model: str) -> str:
    """Decide, write the reports, and give the verdict's sentence."""
    paths, scratch = Paths(model, folder), folder / ".mill" / GATE
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        case = _case(home, paths, scratch)
        judged = judge(case, scratch / "server")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_json(paths.measured(GATE), judged.measured)
    write_json(paths.report(USED), packed(judged.used))
    write_text(paths.page(GATE), gate_page(judged.report, judged.measured, case.rules, judged.changed))
    write_json(paths.report(GATE), judged.report)
    return str(judged.report["sentence"])


def _case(home: Path, paths: Paths, scratch: Path) -> Case:
    params_file = paths.root / "params.yaml"
    params = load_model(paths.model, params_file)
    inputs = problems.load(params.problem).inputs
    rows = read_rows(paths.clean)
    now, other = champion(home, paths.model), None
    if now is not None:
        own = Paths(paths.model)
        release = fetch(home, now.commit, own.release.as_posix(), scratch / "champion")
        champions = read_release(release, mend=f"It is that of {now.tag}.")
        other = _contestant(champions, _rows_of(home, now, champions, params, rows, scratch / "clean"), inputs)
    made = decisions(home, paths.model)
    return Case(
        paths=paths,
        params=params,
        rules=flows_of(paths.model, params_file).gate,
        test=rows.filter(pl.col("split") == "test"),
        challenger=_contestant(open_release(paths.release), rows, inputs),
        champion=other,
        tag=now.tag if now else None,
        decisions=made,
        used=_used(home, paths.model, made),
    )


def _rows_of(
    home: Path, now: Version, release: Release, params: Model, rows: pl.DataFrame, folder: Path
) -> pl.DataFrame:
    """The champion's rows as its commit has them; where they were purged, what the challenger has instead.

    Splits never change as data grows: a row that the champion has trained on is no test row now, or was forgotten.
    """
    mark = marks(home, now.model).get(now.tag)
    if mark is None or mark.is_reproducible:
        return read_rows(fetch(home, now.commit, Paths(now.model).clean.as_posix(), folder))
    if release.manifest["parameters"]["clean"] != params.clean.model_dump(mode="json"):
        raise GateError(
            f"Rows of {now.tag} were purged. {mark.sentence} And `clean` of params.yaml has changed since, so nobody "
            "knows any more which test rows it has trained on. Look at the new release, and put it in use by hand: "
            "mill promote VERSION --why '…'"
        )
    return rows


def _contestant(release: Release, rows: pl.DataFrame, inputs: Sequence[str]) -> Contestant:
    # Validation rows have ended its training, and set its temperature.
    trained = rows.filter(pl.col("split") != "test")
    runtime = load_runtime(release.folder, release.manifest["parameters"]["threads"])
    return Contestant(release, runtime, all_of(marks_of(trained, inputs)))


def _used(home: Path, model: str, made: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """The marks of each test set, as its last decision left them."""
    last = {str(decision["test_set"]): decision for decision in made if decision.get("alpha_spent")}
    report = Paths(model).report(USED).as_posix()
    used = {}
    for name, decision in last.items():
        told = attempt(home, "cat-file", "blob", f"{decision['commit']}:{report}").stdout
        found = unpacked(json.loads(told)) if told else {}
        if name not in found:
            raise GateError(
                f"The decision {decision.get('tag', '')} has used the test set {name}, but {report} of its commit "
                f"{decision['commit'][:10]} does not say which rows that were. Without it nobody knows which are fresh."
            )
        used[name] = found[name]
    return used


def _leave_artifact(model: str, text: str) -> None:
    """Show the verdict where the flow run is looked at; where that fails it is said, and the verdict stands."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    try:
        create_markdown_artifact(key=f"gate-{model}", markdown=text, description=f"The gate's verdict on {model}")
    except Exception as error:  # whatever a server that is away, or its client, raises
        print(f"Prefect did not take the gate's report: {error!r}. It stands in reports/{model}/gate.html.")
