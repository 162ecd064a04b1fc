"""Stage evaluate on a real exported model: the report, the scores, the plots, the page, and what the clock said."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from tasks import problems
from tasks.errors import DataError
from tasks.evaluate import charts, evaluate
from tasks.problems import _classification
from tasks.shards import ShardWriter, read_json, read_rows
from tests.conftest import REPOSITORY, Line

Copied = Callable[[Line], Line]


def run(line: Line, **changes: Any) -> None:
    paths, params = line.paths, line.params
    evaluate(
        paths.candidate,
        paths.clean,
        paths.scores,
        paths.report("evaluate"),
        paths.report("metrics"),
        paths.plots,
        paths.page("evaluate"),
        paths.measured("serving"),
        params=params.evaluate.model_copy(update=changes),
        threads=params.threads,
        problem=problems.load(params.problem),
    )


def rewrite(folder: Path, rows: pl.DataFrame) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    writer = ShardWriter(folder, 250, rows.schema)
    writer.write(rows)
    writer.finish()


def outputs_of(line: Line) -> dict[str, bytes]:
    files = [line.paths.report("evaluate"), *line.paths.plots.glob("*.json"), *line.paths.scores.iterdir()]
    return {file.name: file.read_bytes() for file in files}


def test_the_report_has_a_value_and_an_interval_for_every_metric(tiny: Line) -> None:
    report = read_json(tiny.paths.report("evaluate"))
    for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro", "f1[positive]", "roc_auc"):
        found = report["metrics"][name]
        assert found["low"] <= found["value"] <= found["high"]
    assert {"average_precision", "log_loss", "expected_calibration_error"} <= set(report["metrics"])
    assert "expected_calibration_error" in report["uncalibrated"]
    assert report["calibration"] == read_json(tiny.paths.candidate / "runtime.json")["calibration"]
    assert set(report["baselines"]) == {"majority", "tfidf_logistic_regression"}
    assert list(report["slices"]["length_quartile"]) == ["1", "2", "3", "4"]
    assert report["rows"] == {"test": 200, "train": 300, "validation": 100}


def test_the_report_says_of_the_test_rows_what_the_scores_say_row_by_row(tiny: Line) -> None:
    report, scores = read_json(tiny.paths.report("evaluate")), read_rows(tiny.paths.scores)
    test = read_rows(tiny.paths.clean).filter(pl.col("split") == "test")
    assert scores["id"].equals(test["id"])
    assert scores["correct"].equals(scores["answer_label"] == test["label"], check_names=False)
    assert scores["correct"].mean() == pytest.approx(report["metrics"]["accuracy"]["value"], abs=1e-6)
    assert scores["log_loss"].mean() == pytest.approx(report["metrics"]["log_loss"]["value"], abs=1e-6)
    for name, baseline in report["baselines"].items():
        assert scores[f"{name}.correct"].mean() == pytest.approx(baseline["metrics"]["accuracy"]["value"], abs=1e-6)
        only_model = scores.filter(pl.col("correct") & ~pl.col(f"{name}.correct"))
        assert baseline["mcnemar"]["only_model_right"] == len(only_model)


def test_what_is_evaluated_is_what_the_exported_model_answers(tiny: Line) -> None:
    from tasks.runtime import load_runtime

    scores = read_rows(tiny.paths.scores)
    test = read_rows(tiny.paths.clean).filter(pl.col("split") == "test")
    answers = load_runtime(tiny.paths.candidate, tiny.params.threads).predict(test)
    assert scores["answer_label"].equals(answers["label"], check_names=False)
    np.testing.assert_allclose(scores["answer_probability"], answers["probability"], atol=1e-9)


def test_run_again_every_output_has_the_same_bytes(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    run(line)
    assert outputs_of(line) == outputs_of(tiny)
    assert {"evaluate.json", "confusion.json", "precision_recall.json", "reliability.json", "manifest.json"} <= set(
        outputs_of(line)
    )


def test_the_clock_is_heard_in_what_is_measured_alone(tiny: Line) -> None:
    serving = read_json(tiny.paths.measured("serving"))
    assert serving["bytes"] == sum(file.stat().st_size for file in tiny.paths.candidate.rglob("*") if file.is_file())
    assert 0 < serving["latency_ms"]["p50"] <= serving["latency_ms"]["p99"]
    assert 1 <= serving["latency_ms"]["rows"] <= 200  # as many as there is time for
    assert serving["rows_per_second"] > 0
    assert serving["load_seconds"] > 0
    assert "latency" not in tiny.paths.report("evaluate").read_text()


def test_any_column_of_the_rows_can_be_a_slice(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    rows = read_rows(line.paths.clean).with_columns(critic=pl.Series(["ada", None, "bo"] * 200))
    rewrite(line.paths.clean, rows)
    run(line, slices=["critic"])
    found = read_json(line.paths.report("evaluate"))["slices"]
    counted = rows.filter(pl.col("split") == "test")["critic"].fill_null("(none)").value_counts()
    assert {value: part["rows"] for value, part in found["critic"].items()} == dict(counted.iter_rows())
    assert "slice.critic" in read_rows(line.paths.scores).columns


def test_rows_that_would_get_no_answer_count_and_are_counted(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    rows = read_rows(line.paths.clean)
    odd = rows.filter(pl.col("split") == "test")["id"].head(3)
    unread = pl.when(pl.col("id").is_in(odd.implode())).then(pl.lit("ძალიან კარგი ფილმია")).otherwise("text")
    rewrite(line.paths.clean, rows.with_columns(text=unread))
    run(line)
    report, said = read_json(line.paths.report("evaluate")), "3 of them would get a reason instead of an answer"
    assert report["no_answer"] == 3
    assert len(read_rows(line.paths.scores)) == report["rows"]["test"]
    assert said in line.paths.page("evaluate").read_text()
    assert read_json(tiny.paths.report("evaluate"))["no_answer"] == 0
    assert "instead of an answer" not in tiny.paths.page("evaluate").read_text()


def test_a_slice_that_is_no_column_stops_before_anything_is_written(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    before = outputs_of(line)
    with pytest.raises(DataError, match=r"'length_quartil'.*Did you mean 'length_quartile'\?"):
        run(line, slices=["length_quartil"])
    assert outputs_of(line) == before


def test_without_test_rows_it_says_what_to_change(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    rewrite(line.paths.clean, read_rows(line.paths.clean).filter(pl.col("split") != "test"))
    with pytest.raises(DataError, match=r"no row is in the test split\. Raise clean\.split\.test"):
        run(line)


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json", "runtime.json"])
def test_a_candidate_that_is_not_whole_is_named(tiny: Line, copied: Copied, missing: str) -> None:
    line = copied(tiny)
    (line.paths.candidate / missing).unlink()
    with pytest.raises(DataError, match=rf"candidate.{missing} is not here"):
        run(line)


class Reader(HTMLParser):
    """The text of a page and its tags, and whether every tag that opens closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_page_shows_the_reports_figures_and_is_whole_html(tiny: Line) -> None:
    report, page = read_json(tiny.paths.report("evaluate")), tiny.paths.page("evaluate").read_text()
    read = Reader(page)
    assert read.open == []
    assert "script" not in read.tags
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    text = " ".join(read.text.split())
    accuracy = report["metrics"]["accuracy"]
    assert f"{accuracy['value']:.3f}accuracy, {accuracy['low']:.3f} to {accuracy['high']:.3f}" in text
    for part in ("Confusion matrix", "Reliability", "Precision and recall", "Loss while training", "surest mistakes"):
        assert part in text
    beaten = "Beats" if report["baselines"]["tfidf_logistic_regression"]["beaten"] else "Does not beat"
    assert f"{beaten} TF-IDF + logistic regression" in text
    for part in report["slices"]["length_quartile"].values():
        assert f"{part['metrics']['accuracy']['value']:.3f}" in text


def test_the_first_sentence_of_the_page_says_what_the_report_says_first(tiny: Line) -> None:
    report, page = read_json(tiny.paths.report("evaluate")), tiny.paths.page("evaluate").read_text()
    first = re.search(r"<p class=\"lead\">(.*?)</p>", page)
    assert first is not None
    assert first[1].replace("TF-IDF + logistic regression", "tfidf logistic regression") == report["headline"]
    assert report["headline"].startswith("Does not beat") is not report["beats_baselines"]


def test_a_text_that_is_markup_is_shown_and_not_obeyed(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    hostile = "<script>alert('x')</script> & <b>bold</b> "
    rewrite(line.paths.clean, read_rows(line.paths.clean).with_columns(text=hostile + pl.col("text")))
    run(line, slices=["text"])
    page = line.paths.page("evaluate").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;alert") > 30, "the slices and the mistakes show the text"


def test_the_page_does_without_a_loss_curve(tiny: Line, copied: Copied) -> None:
    line = copied(tiny)
    (line.paths.plots / "loss.json").unlink()
    run(line)
    page = line.paths.page("evaluate").read_text()
    assert "Loss while training" not in page
    assert "Precision and recall" in page


def test_many_labels_are_shown_by_their_commonest_confusions() -> None:
    names = [f"topic {number:02d}" for number in range(15)]
    actual_N = np.repeat(np.arange(15), 40)
    predicted_N = np.where(np.arange(600) % 40 < actual_N, (actual_N + 1) % 15, actual_N)
    cells = _classification.curves(actual_N, np.eye(15)[predicted_N], names, bins=15)
    shown = charts(cells, cells, [])
    assert [(cell["actual"], cell["predicted"], cell["rows"]) for cell in shown["confused"][:2]] == [
        ("topic 14", "topic 00", 14),
        ("topic 13", "topic 14", 13),
    ]
    assert len(shown["confusion"]) == 15
    assert sum(cell["share"] for cell in shown["confusion"][3]["cells"]) == pytest.approx(1)


def test_dvc_draws_the_plots_as_dvc_yaml_has_them(tiny: Line, copied: Copied) -> None:
    line, yaml = copied(tiny), YAML()
    root = line.paths.root
    stages = yaml.load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    plots = [plot for stage in ("train", "evaluate") for plot in stages[stage]["do"]["plots"]]
    stage = {"foreach": {"tiny": {}}, "do": {"cmd": "true", "plots": plots}}
    with (root / "dvc.yaml").open("w") as file:
        yaml.dump({"stages": {"evaluate": stage}}, file)
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], cwd=root, check=True)
    shutil.copytree(REPOSITORY / ".dvc/plots", root / ".dvc/plots")
    drawn = subprocess.run([dvc, "plots", "show", "--json"], cwd=root, capture_output=True, text=True, check=True)
    answer = json.loads(drawn.stdout)
    assert "errors" not in answer
    by_name = {Path(name.split("::")[0]).stem: renderers for name, renderers in answer["data"].items()}
    assert set(by_name) == {"loss", "confusion", "precision_recall", "reliability"}
    for name, renderers in by_name.items():
        content = json.dumps(renderers[0]["content"])
        assert "<DVC_METRIC" not in content, name
        assert all(f'"{key}":' in content for key in read_json(line.paths.plots / f"{name}.json")[0])
