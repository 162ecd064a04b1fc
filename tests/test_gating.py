"""The gate on real releases: a registered champion, the real server, and reports as a retrain leaves them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import judging
from flows.boot import boot
from flows.gating import GateError, check_gate, gate_release, judge_release
from flows.git import git
from flows.judging import Case, Contestant, against
from flows.params import flows_of
from flows.registry import champion, decisions, promote, record_decision, register
from tasks.errors import ParamsError
from tasks.gate import Contender
from tasks.params import SplitByHash
from tasks.paths import Paths
from tasks.problems.text_classification import TextClassification
from tasks.release import GOLDEN, MANIFEST, Release, read_release, seal
from tasks.runtime import load_runtime
from tasks.shards import ShardWriter, read_json, read_rows, write_json, write_text
from tasks.spending import all_of, among, marks_of, unpacked
from tasks.splits import draw
from tests.conftest import TIDY, Line
from tests.registered import dvc, write_params

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

# The line of the toy repository: what stands beside it is what the stage makes.
MAKE = """
import shutil, sys
model, made = sys.argv[1], "MADE"
for name in (f"data/{model}/clean", f"models/{model}/release"):
    shutil.rmtree(name, ignore_errors=True)
    shutil.copytree(f"{made}/{name}", name)
"""
STAGES = """stages:
  deploy:
    foreach: ${models}
    do:
      cmd: python make.py ${key}
      deps: [make.py, which]
      outs: ["data/${key}/clean", "models/${key}/release"]
"""


def sealed(source: Path, folder: Path, runtime: dict[str, Any] | None = None, padding: int = 0, **told: Any) -> Release:
    """A release like another, with some of its runtime.json changed, larger by some bytes, or told otherwise."""
    shutil.copytree(source, folder)
    facts = {key: value for key, value in read_json(folder / MANIFEST).items() if key not in ("files", "version")}
    if runtime:
        write_json(folder / "runtime.json", {**read_json(folder / "runtime.json"), **runtime})
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" " * padding)
    seal(folder, {**facts, "model": "films", **told})
    return read_release(folder)


def changed_gate(params: Path, **changed: Any) -> None:
    content = read_json(params)
    content["flows"]["models"]["films"]["gate"] |= changed
    write_json(params, content)


@pytest.fixture(scope="session")
def upside_down(released: Line, tmp_path_factory) -> Release:
    """As good as the tiny model is bad: it says the other label, for it has learned much."""
    return sealed(
        released.paths.release,
        tmp_path_factory.mktemp("upside") / "release",
        runtime={"signature": {"labels": ["positive", "negative"]}},
    )


@pytest.fixture(scope="session")
def home(released: Line, upside_down: Release, tmp_path_factory) -> Path:
    """A repository whose champion is the worse of the two, and larger."""
    root, made = tmp_path_factory.mktemp("gated") / "repository", tmp_path_factory.mktemp("made")
    shutil.copytree(released.paths.clean, made / "data/films/clean")
    champion = sealed(upside_down.folder, made / "models/films/release", padding=400_000)
    root.mkdir()
    for command in (
        ("init", "-q", "-b", "main"),
        ("config", "user.name", "t"),
        ("config", "user.email", "t@localhost"),
    ):
        git(root, *command)
    write_params(root)
    changed_gate(root / "params.yaml", uses=1, margin=0.08, improves={"size": 0.1}, slice_margin=0.3)
    write_text(root / "dvc.yaml", STAGES)
    write_text(root / "make.py", MAKE.replace("MADE", str(made)))
    write_text(root / "which", "1\n")
    write_text(root / ".gitignore", "/.mill/\n/models/\n/data/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    dvc(root, "repro", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "the champion")
    commit = git(root, "rev-parse", "HEAD")
    promote(root, register(root, "films", commit, release=champion, why="the first"), why="the first")
    return root


@pytest.fixture
def repository(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "repository", symlinks=True))


@pytest.fixture
def worktree(home: Path, released: Line, tmp_path: Path) -> Callable[[Path], Paths]:
    """A folder in which a line has made that release."""

    def make(release: Path) -> Paths:
        paths = Paths("films", tmp_path / "worktree")
        shutil.copytree(released.paths.clean, paths.clean)
        shutil.copytree(release, paths.release)
        shutil.copyfile(home / "params.yaml", paths.root / "params.yaml")
        return paths

    return make


@pytest.fixture(scope="session")
def better(released: Line, tmp_path_factory) -> Release:
    return sealed(released.paths.release, tmp_path_factory.mktemp("better") / "release")


def decided(repository: Path, paths: Paths) -> dict[str, Any]:
    """Judge, and record it as a retrain does."""
    judge_release(repository, paths.root, "films")
    report = read_json(paths.report("gate"))
    shutil.copytree(paths.reports, repository / "reports/films", dirs_exist_ok=True)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "decided", "--allow-empty")
    test_set = report["test_set"]["name"] if report["alpha_spent"] else None
    told = {"model": "films", "alpha_spent": report["alpha_spent"], "test_set": test_set}
    record_decision(
        repository, git(repository, "rev-parse", "HEAD"), {**told, "verdict": report["verdict"], "sentence": "-"}
    )
    return report


@pytest.mark.long
def test_a_better_challenger_is_promoted_until_the_test_set_is_worn_out(repository, worktree, better):
    paths = worktree(better.folder)
    judge_release(repository, paths.root, "films")
    files = [paths.report("gate"), paths.report("gate_used")]
    before = [file.read_bytes() for file in files]
    first = decided(repository, paths)
    # No clock is in the reports: they are the same again.
    assert [file.read_bytes() for file in files] == before
    assert not any(word in files[0].read_text() for word in ("seconds", "_ms", "p50"))
    _check_promotion(first)
    _check_measured(paths)
    assert [len(marks) for marks in unpacked(read_json(files[1])).values()] == [400]
    page = paths.page("gate").read_text()
    assert "<h1>Promote</h1>" in page
    assert page.count('class="quote"') == 12
    for part in first["comparison"]["slices"]:
        assert f"{part['rows']} rows, {part['champion']:.3f} → {part['challenger']:.3f}</span></th>" in page
        assert f'<td class="number wide">{part["challenger"]:.3f}</td>' in page
    assert len(first["comparison"]["slices"]) == 4
    assert not (paths.root / ".mill/gate").exists()
    second = decided(repository, paths)
    assert (second["verdict"], second["alpha_spent"], second["comparison"]) == ("ask", 0, None)
    assert f"{first['test_set']['name']} is worn out" in second["sentence"]
    assert second["test_set"]["rows"] == {"test": 200, "trained_on": 0, "compared": 0, "kept_back": 0, "used_up": 200}
    assert "<h1>Ask a person</h1>" in paths.page("gate").read_text()
    assert [decision["alpha_spent"] for decision in decisions(repository, "films")] == [0.05, 0]
    # What was used stays known, though the last decision has used nothing.
    assert unpacked(read_json(files[1])).keys() == {first["test_set"]["name"]}


def _check_promotion(report: dict[str, Any]) -> None:
    found = report["comparison"]
    assert report["verdict"] == "promote"
    assert report["serves"] is True
    assert "it is better, by 0." in report["sentence"]
    assert found["superiority"]["test"] == "McNemar's exact test"
    assert found["superiority"]["p_value"] < found["level"] == report["alpha_spent"] == 0.05
    assert found["only_challenger_right"] > found["only_champion_right"]
    assert found["rows"] == 200
    assert found["challenger"] == pytest.approx(1 - found["champion"])
    assert (report["test_set"]["uses_before"], report["test_set"]["spent_before"]) == (0, 0)


def _check_measured(paths: Paths) -> None:
    measured = read_json(paths.measured("gate"))
    assert measured["latency_ms"]["challenger"]["p50"] > 0
    assert measured["latency_ms"]["champion"]["rows"] == measured["latency_ms"]["challenger"]["rows"] >= 20
    assert measured["served"]["rows"] == 8
    assert measured["served"]["ready_seconds"] > 0


def test_the_first_version_is_promoted_and_spends_nothing(repository, worktree, better):
    git(repository, "tag", "-d", *git(repository, "tag", "--list").splitlines())
    assert champion(repository, "films") is None
    report = decided(repository, worktree(better.folder))
    assert (report["verdict"], report["alpha_spent"], report["champion"]) == ("promote", 0, None)
    assert "first version" in report["sentence"]
    assert report["serves"] is True


def test_what_does_not_serve_is_kept_out_and_uses_no_test_set(repository, worktree, better, tmp_path):
    golden = read_json(better.folder / GOLDEN)
    golden["rows"][0]["outputs"]["logits"][0] += 5
    broken = tmp_path / "broken"
    shutil.copytree(better.folder, broken)
    write_json(broken / GOLDEN, golden)
    paths = worktree(sealed(broken, tmp_path / "sealed").folder)
    report = decided(repository, paths)
    assert (report["verdict"], report["alpha_spent"], report["serves"]) == ("keep", 0, False)
    assert "does not bring it up" in report["sentence"]
    assert "does not answer as it did where it was made" in report["sentence"]


def test_what_is_too_large_is_kept_out_before_it_is_served(repository, worktree, better):
    paths = worktree(better.folder)
    changed_gate(paths.root / "params.yaml", max_size_mb=0.01)
    report = decided(repository, paths)
    assert (report["verdict"], report["alpha_spent"], report["serves"]) == ("keep", 0, None)
    assert "its size is above gate.max_size_mb" in report["sentence"]


def test_by_retrains_way_a_verdict_comes_with_what_was_spent_and_measured(repository, worktree, better, served):
    from prefect import flow, runtime
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    paths = worktree(better.folder)
    found, run = flow(name="gate")(lambda: (gate_release(repository, paths.root, "films"), runtime.flow_run.id))()
    report = read_json(paths.report("gate"))
    assert found["verdict"] == "promote"
    assert found["sentence"] == report["sentence"]
    assert (found["alpha_spent"], found["test_set"]) == (0.05, report["test_set"]["name"])
    assert found["measured"] == read_json(paths.measured("gate"))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        )
    assert artifact.key == "gate-films"
    assert "## Promote" in artifact.data
    assert report["challenger"]["version"] in artifact.data


def test_a_gate_that_cannot_decide_says_so_and_leaves_no_verdict(repository, worktree, better):
    paths = worktree(better.folder)
    (paths.release / "model.onnx").unlink()
    with pytest.raises(GateError, match=r"(?s)could not be judged.*model\.onnx is missing"):
        gate_release(repository, paths.root, "films")
    assert not paths.report("gate").exists()


def test_without_the_list_of_used_rows_nothing_counts_as_fresh(repository, worktree, better):
    told = {"model": "films", "verdict": "keep", "sentence": "-", "alpha_spent": 0.01, "test_set": "set-1"}
    record_decision(repository, git(repository, "rev-parse", "HEAD"), told)
    with pytest.raises(GateError, match=r"decision/films/1 has used the test set set-1, but .*gate_used\.json"):
        judge_release(repository, worktree(better.folder).root, "films")


def test_a_metric_that_is_none_is_found_before_anything_is_trained(worktree, better):
    paths = worktree(better.folder)
    check_gate("films", paths.root / "params.yaml")
    changed_gate(paths.root / "params.yaml", metric="acuracy")
    with pytest.raises(ParamsError, match=r"'acuracy', which is not a metric.*Did you mean 'accuracy'"):
        check_gate("films", paths.root / "params.yaml")


# What needs no server and no repository: one case, changed here and there.

SAME = [Contender(1.0, np.full(60, 10.0)), Contender(1.0, np.full(60, 10.0))]
SMALLER = [Contender(0.5, np.full(60, 10.0)), Contender(1.0, np.full(60, 10.0))]


def contestant(release: Release, rows: pl.DataFrame) -> Contestant:
    trained = rows.filter(pl.col("split") != "test")
    return Contestant(release, load_runtime(release.folder, 1), all_of(marks_of(trained, ["text"])))


@pytest.fixture
def case(home, worktree, better, upside_down) -> Case:
    paths = worktree(better.folder)
    rows = read_rows(paths.clean)
    return Case(
        paths=paths,
        params=flows_model(paths),
        rules=flows_of("films", paths.root / "params.yaml").gate,
        test=rows.filter(pl.col("split") == "test"),
        challenger=contestant(better, rows),
        champion=contestant(upside_down, rows),
        tag="films@v1.0.0",
        decisions=[],
        used={},
    )


def flows_model(paths: Paths) -> Any:
    from tasks.params import load_model

    return load_model("films", paths.root / "params.yaml")


class Biased(TextClassification):
    """Answers as if the second label were much likelier than it is."""

    def answer(self, rows: pl.DataFrame, outputs: Any, signature: Any, calibration: Any) -> pl.DataFrame:
        logits = outputs["logits"] + np.array([0.0, 2.0])
        return super().answer(rows, {**outputs, "logits": logits}, signature, calibration)


def with_rules(case: Case, **changed: Any) -> Case:
    return replace(case, rules=case.rules.model_copy(update=changed))


def test_an_equal_one_is_kept_out_and_a_smaller_equal_one_promoted(case):
    equal = replace(case, champion=case.challenger)
    kept = against(equal, case.challenger, SAME).report
    assert kept["verdict"] == "keep"
    assert "not shown to be better" in kept["sentence"]
    assert kept["comparison"]["difference"]["value"] == 0
    promoted = against(equal, case.challenger, SMALLER).report
    assert promoted["verdict"] == "promote"
    assert "its size falls by 50%" in promoted["sentence"]
    assert promoted["improves"] == {"size": True}


def test_the_worse_one_is_kept_out_with_examples_of_what_it_gets_wrong(case):
    turned = against(replace(case, challenger=case.champion), case.challenger, SMALLER)
    assert turned.report["verdict"] == "keep"
    assert "it is worse, by 0." in turned.report["sentence"]
    assert len(turned.changed["worsened"]) == 6
    example = turned.changed["worsened"][0]
    text = case.test.row(by_predicate=pl.col("id") == example["id"], named=True)
    assert example["texts"] == [text["text"]]
    assert example["answers"][1].startswith(text["label"])
    assert turned.report["comparison"]["changed"]["worsened"]["examples"] == [
        row["id"] for row in turned.changed["worsened"]
    ]


def test_rows_that_the_champion_has_trained_on_are_left_out_by_id_and_by_what_they_say(case):
    twenty = case.test.head(20)
    same_text = twenty.head(12).with_columns(id="again-" + pl.col("id"), text=pl.col("text").str.to_uppercase())
    same_id = twenty.tail(8).with_columns(text=pl.lit("something else"))
    trained = case.champion.trained | all_of(marks_of(pl.concat([same_text, same_id]), ["text"]))
    found = against(case, replace(case.champion, trained=trained), SAME)
    assert found.report["test_set"]["rows"]["trained_on"] == 20
    assert found.report["comparison"]["rows"] == 180
    (marks,) = found.used.values()
    assert not marks & all_of(marks_of(twenty, ["text"]))


def test_with_no_row_left_a_person_is_asked(case):
    trained = case.champion.trained | all_of(marks_of(case.test, ["text"]))
    report = against(case, replace(case.champion, trained=trained), SAME).report
    assert (report["verdict"], report["alpha_spent"]) == ("ask", 0)
    assert "no test row that neither of the two has trained on" in report["sentence"]


def test_once_worn_out_the_rows_that_are_fresh_wait_until_there_are_enough(case):
    spent = [{"test_set": "set-1", "alpha_spent": case.rules.alpha}]
    old = all_of(marks_of(case.test.head(150), ["text"]))
    worn = replace(case, decisions=spent, used={"set-1": old})
    waiting = against(worn, case.champion, SAME)
    assert (waiting.report["verdict"], waiting.report["alpha_spent"]) == ("ask", 0)
    assert "50 test rows have not decided yet" in waiting.report["sentence"]
    assert waiting.used == worn.used
    enough = against(with_rules(worn, margin=0.7), case.champion, SAME)
    assert enough.report["alpha_spent"] == 0.05
    assert enough.report["test_set"]["follows"] == "set-1"
    assert enough.report["comparison"]["rows"] == 50
    assert set(enough.used) == {"set-1", enough.report["test_set"]["name"]}


def test_a_new_seed_of_the_split_gives_fresh_rows_to_the_versions_after_the_one_promoted_by_hand(case):
    """What the report advises where the test set is worn out and nothing new arrives."""
    rows = read_rows(case.paths.clean)
    drawn = draw(rows, SplitByHash(by="id", column=None, validation=0.1, test=0.4, seed=2)).cast(pl.String)
    redrawn = rows.with_columns(split=drawn)
    test, old = redrawn.filter(pl.col("split") == "test"), all_of(marks_of(case.test, ["text"]))
    spent = [{"test_set": "set-1", "alpha_spent": case.rules.alpha}]
    worn = replace(case, test=test, decisions=spent, used={"set-1": old})
    by_hand = contestant(case.challenger.release, redrawn)
    asked = against(replace(worn, challenger=by_hand), case.champion, SAME).report
    assert (asked["verdict"], asked["alpha_spent"]) == ("ask", 0)
    assert "change clean.split.seed" in asked["sentence"]
    assert asked["test_set"]["rows"]["trained_on"] == (~among(marks_of(test, ["text"]), old)).sum()
    after = replace(with_rules(worn, margin=0.5), challenger=by_hand)
    decided = against(after, contestant(case.champion.release, redrawn), SAME).report
    assert decided["test_set"]["follows"] == "set-1"
    assert decided["alpha_spent"] == case.rules.alpha
    assert decided["comparison"]["rows"] == asked["test_set"]["rows"]["trained_on"] > 100


def test_a_slice_that_is_worse_asks_a_person(case):
    slices = case.params.evaluate.model_copy(update={"slices": ["label", "length_quartile"]})
    params = case.params.model_copy(update={"evaluate": slices})
    # It hardly ever says negative any more, and is the smaller.
    labels = case.challenger.runtime.signature["labels"]
    one_sided = replace(case.challenger, runtime=replace(case.challenger.runtime, problem=Biased()))
    found = against(
        with_rules(replace(case, params=params, challenger=one_sided), margin=0.5, slice_margin=0.1),
        case.challenger,
        SMALLER,
    ).report
    assert found["verdict"] == "ask"
    worse = {(part["slice"], part["value"]) for part in found["comparison"]["slices"] if part["worse"]}
    assert ("label", labels[0]) in worse
    assert ("label", labels[1]) not in worse
    assert "worse by more than 0.1 in a part of them: label negative" in found["sentence"]
    assert sum(part["rows"] for part in found["comparison"]["slices"]) == 400


@pytest.mark.parametrize("metric", ["f1_macro", "log_loss", "roc_auc", "f1[negative]"])
def test_any_metric_of_the_problem_decides_in_its_own_direction(case, metric):
    rules = {"metric": metric, "resamples": 1000}
    report = against(with_rules(case, **rules), case.champion, SAME).report
    assert report["verdict"] == "promote"
    assert report["comparison"]["superiority"]["test"] == "paired bootstrap, studentised"
    assert report["comparison"]["difference"]["low"] > 0
    turned = against(with_rules(replace(case, challenger=case.champion), **rules), case.challenger, SAME).report
    assert turned["verdict"] == "keep"
    assert turned["comparison"]["difference"]["high"] < 0


def test_the_bootstrap_agrees_with_the_exact_test_where_both_can_be_had(case):
    exact = against(case, case.champion, SAME).report["comparison"]["difference"]
    drawn = against(with_rules(case, metric="recall_macro", resamples=4000), case.champion, SAME).report["comparison"]
    assert drawn["difference"]["value"] == pytest.approx(exact["value"], abs=0.03)
    for end in ("low", "high"):
        assert drawn["difference"][end] == pytest.approx(exact[end], abs=0.05)


def test_rows_of_one_group_are_drawn_together(case):
    split = {"by": "group", "column": "film", "validation": 0.1, "test": 0.25, "seed": 1}
    content = read_json(case.paths.root / "params.yaml")
    content["models"]["films"]["clean"]["split"] = split
    write_json(case.paths.root / "params.yaml", content)
    alone = against(case, case.champion, SAME).report["comparison"]
    films = pl.Series("film", [f"film {row // 2}" for row in range(len(case.test))])
    # The same rows twice: as much is known as before.
    twice = pl.concat([case.test, case.test.with_columns(id="b" + pl.col("id"))]).with_columns(
        film=pl.concat([films, films])
    )
    grouped = replace(case, params=flows_model(case.paths), test=twice)
    found = against(grouped, case.champion, SAME).report["comparison"]
    assert found["superiority"]["test"] == "paired bootstrap, studentised"
    assert found["rows"] == 400
    width = found["difference"]["high"] - found["difference"]["low"]
    assert width > 0.8 * (alone["difference"]["high"] - alone["difference"]["low"])


def test_a_label_that_the_champion_does_not_know_asks_a_person(case):
    label = pl.when(pl.col("id") == case.test["id"][0]).then(pl.lit("mixed")).otherwise("label")
    report = against(replace(case, test=case.test.with_columns(label=label)), case.champion, SAME).report
    assert (report["verdict"], report["alpha_spent"]) == ("ask", 0)
    assert "cannot be compared" in report["sentence"]
    assert "mixed" in report["sentence"]


def test_a_champion_that_tidies_otherwise_reads_the_rows_as_it_would_be_asked(case):
    paths = case.paths
    raw = case.test.with_columns(text="<b>" + pl.col("text") + "</b>").drop("split")
    paths.valid.mkdir(parents=True)
    writer = ShardWriter(paths.valid, 1000, raw.schema)
    writer.write(raw)
    writer.finish()
    other = replace(case.champion.runtime, tidy=case.champion.runtime.tidy.model_copy(update={"strip_markup": False}))
    assert TIDY["strip_markup"]
    own = judging._tidied_for(replace(case.champion, runtime=other), case, case.test)
    assert own["text"].str.starts_with("<b>").all()
    assert judging._tidied_for(case.champion, case, raw)["text"].equals(raw["text"])
    assert own["id"].to_list() == case.test["id"].to_list()
    bare = own["text"].str.replace_all("</?b>", "")
    assert bare.equals(case.test["text"].str.replace_all(r"\s+", " ").str.strip_chars())


def test_a_server_that_ends_is_said_with_its_last_words(better, worktree, tmp_path):
    paths = worktree(better.folder)
    content = read_json(paths.root / "params.yaml")
    content["flows"]["serve"]["batch_rows"] = "many"
    write_json(tmp_path / "params.yaml", content)
    found = boot(better, "films", tmp_path / "params.yaml", tmp_path / "server")
    assert found.failure is not None
    assert "The server ended with it" in found.failure
    assert "batch_rows" in found.failure
    assert json.loads((tmp_path / "server/params.yaml").read_text())["flows"]["serve"]["host"] == "127.0.0.1"
