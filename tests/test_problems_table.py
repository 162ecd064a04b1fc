"""The table of problems: rows from the reports of a real line, and a word on what was not run."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.recipes import recipes
from tasks import problems
from tasks.errors import DataError
from tasks.params import load_model
from tasks.paths import STAGES
from tasks.shards import read_json, write_json
from tests.benchmarks.problems import KEPT, PAGE, _best_baseline, _clone, export_only, figures, page
from tests.conftest import REPOSITORY, Line

Copied = Callable[[Line], Line]

SECONDS = {"train": 75.2, "evaluate": 20.0}


@pytest.fixture
def ended(released: Line, copied: Copied) -> Line:
    """A line that has come to its end, with what its stages' clocks said."""
    line = copied(released)
    for stage in STAGES:
        write_json(line.paths.measured(stage), {"wall_seconds": SECONDS.get(stage, 1.0)})
    return line


def test_a_row_says_what_the_reports_say(ended: Line) -> None:
    found = figures(ended.paths)
    evaluation, exported = (read_json(ended.paths.report(stage)) for stage in ("evaluate", "export"))
    serving = read_json(ended.paths.measured("serving"))
    assert found["quality"] == evaluation["metrics"]["accuracy"]
    assert found["baseline"]["name"] == "tfidf_logistic_regression"
    assert found["baseline"]["difference"] == evaluation["baselines"]["tfidf_logistic_regression"]["difference"]
    assert found["variants"] == {
        exported["released"]: {
            "bytes": exported["variants"][exported["released"]]["bytes"],
            "latency_ms": serving["latency_ms"]["p50"],
            "quality": evaluation["metrics"]["accuracy"]["value"],
        }
    }
    assert found["seconds"] == {"line": 75.2 + 20.0 + 6.0, "train": 75.2}
    assert found["model"] == "BertForSequenceClassification"
    assert found["verdict"] == "accepted"


def test_the_weights_are_counted(ended: Line) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(ended.paths.checkpoint, dtype=torch.float32)
    assert figures(ended.paths)["weights"] == sum(weights.numel() for weights in model.parameters())


@pytest.mark.parametrize("missing", ["evaluate.json", "deploy.json", "measured/train.json", "measured/serving.json"])
def test_a_line_that_has_not_come_to_its_end_gives_no_row_and_is_named(ended: Line, missing: str) -> None:
    (ended.paths.reports / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing} is not here: the line of \w+ has not come to its end"):
        figures(ended.paths)


def test_a_problem_that_was_not_run_has_no_row_and_a_sentence_with_its_command(ended: Line) -> None:
    written = page({"text_classification": figures(ended.paths)}, ["question_answering", "text_classification"])
    rows = [line for line in written.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| text_classification"]
    assert "- question_answering: `python -m tests.benchmarks.problems --only question_answering`" in written
    assert "1 min 15 s | 1 min 41 s" in rows[0]
    assert "Not run yet" not in page({"text_classification": figures(ended.paths)}, ["text_classification"])


def test_the_variants_stand_side_by_side_and_the_released_one_in_bold(ended: Line) -> None:
    row: dict[str, Any] = figures(ended.paths)
    row["released"] = "int8"
    row["variants"] = {"int8": {"bytes": 23_000_000, "latency_ms": 1.234, "quality": 0.8}}
    alone = page({"text_classification": row}, ["text_classification"])
    assert "| – → **23.0** | – → **1.23** | – → **0.800** |" in alone
    row["variants"]["fp32"] = {"bytes": 91_000_000, "latency_ms": 25.0, "quality": 0.81}
    both = page({"text_classification": row}, ["text_classification"])
    assert "| 91.0 → **23.0** | 25 → **1.23** | 0.810 → **0.800** |" in both
    row["variants"]["int8_blocks"] = {"bytes": 26_000_000, "latency_ms": 2.0, "quality": 0.81}
    three = page({"text_classification": row}, ["text_classification"])
    assert "| 91.0 → **23.0** → 26.0 | 25 → **1.23** → 2 | 0.810 → **0.800** → 0.810 |" in three


def test_the_best_baseline_is_the_lowest_where_less_is_better() -> None:
    def baseline(value: float | None) -> dict[str, Any]:
        return {"metrics": {"bits_per_byte": {"value": value}}, "difference": {}, "beaten": True}

    evaluation = {"baselines": {"a": baseline(2.5), "b": baseline(2.1), "c": baseline(None), "d": baseline(8.0)}}
    assert _best_baseline(evaluation, problems.load("text_generation"))["name"] == "b"


def test_a_clone_exports_one_variant_and_then_again_what_its_recipe_says(ended: Line) -> None:
    paths = ended.paths
    shutil.copytree(REPOSITORY / "recipes", paths.root / "recipes")
    before = read_json(paths.root / "params.yaml")["models"][paths.model]

    def now() -> Any:
        return load_model(paths.model, paths.root / "params.yaml")

    export_only(paths, "text_classification", "fp32")
    assert now().export.variants == ["fp32"]
    assert now().train.model_dump(mode="json") == before["train"]
    export_only(paths, "text_classification", None)
    assert now().export.model_dump(mode="json") == before["export"]


def test_the_document_is_what_its_figures_say() -> None:
    kept = read_json(REPOSITORY / KEPT)
    assert (REPOSITORY / PAGE).read_text() == page(kept, recipes(REPOSITORY))


def test_a_recipe_becomes_a_model_of_a_clone_of_what_is_committed(tmp_path: Path) -> None:
    root = _clone("question_answering", tmp_path)
    assert load_model("question-answering", root / "params.yaml").problem == "question_answering"
    assert _clone("question_answering", tmp_path) == root, "an earlier one is gone on with"
    assert subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "tasks"], cwd=root, check=False).returncode == 0
