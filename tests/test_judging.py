"""What the gate makes of two contestants and the rows between them: one case, changed here and there."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import judging
from flows.judging import Case, Contestant, against
from flows.params import flows_of
from tasks.gate import Contender
from tasks.params import SplitByHash
from tasks.paths import Paths
from tasks.problems.text_classification import TextClassification
from tasks.release import Release
from tasks.runtime import load_runtime
from tasks.shards import ShardWriter, read_json, read_rows, write_json
from tasks.spending import all_of, among, marks_of
from tasks.splits import draw
from tests.conftest import TIDY, Line
from tests.gated import GATE, better_one, changed_gate, upside_down_one
from tests.registered import write_params

SAME = [Contender(1.0, np.full(60, 10.0)), Contender(1.0, np.full(60, 10.0))]
SMALLER = [Contender(0.5, np.full(60, 10.0)), Contender(1.0, np.full(60, 10.0))]


def contestant(release: Release, rows: pl.DataFrame) -> Contestant:
    trained = rows.filter(pl.col("split") != "test")
    return Contestant(release, load_runtime(release.folder, 1), all_of(marks_of(trained, ["text"])))


@pytest.fixture(scope="session")
def upside_down(released: Line, tmp_path_factory) -> Release:
    return upside_down_one(released, tmp_path_factory.mktemp("upside") / "release")


@pytest.fixture(scope="session")
def better(released: Line, tmp_path_factory) -> Release:
    return better_one(released, tmp_path_factory.mktemp("better") / "release")


@pytest.fixture
def case(released: Line, better: Release, upside_down: Release, tmp_path: Path) -> Case:
    paths = Paths("films", tmp_path / "worktree")
    shutil.copytree(released.paths.clean, paths.clean)
    write_params(paths.root)
    changed_gate(paths.root / "params.yaml", **GATE)
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
