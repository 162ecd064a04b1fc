"""The release: what is in it, the verdict on it, and that it is made the same each time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from huggingface_hub import ModelCard

from tasks import problems
from tasks.deploy import check_floors, deploy, held_out, judge
from tasks.errors import DataError, ParamsError
from tasks.golden import differences
from tasks.params import Deploy
from tasks.release import open_release, read_release
from tasks.runtime import load_runtime
from tasks.shards import ShardWriter, read_json, sha256_of
from tests.conftest import Line, tiny_params

PROBLEM = problems.load("text_classification")


@pytest.fixture
def line(tiny: Line, copied: Callable[[Line], Line]) -> Line:
    return copied(tiny)


def gate(**changed: Any) -> Deploy:
    return tiny_params(**{"floors": {}, "must_beat_baselines": False, **changed}).deploy


def figures(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value and value - 0.02, "high": value and value + 0.02}


def evaluation(beaten: bool = True, **metrics: float | None) -> dict[str, Any]:
    found = {name: figures(value) for name, value in {"accuracy": 0.8, **metrics}.items()}
    baseline = {"metrics": {"accuracy": figures(0.75)}, "difference": figures(0.05), "beaten": beaten}
    return {"metrics": found, "baselines": {"majority": baseline}, "beats_baselines": beaten}


def deployed(line: Line, **changed: Any) -> dict[str, Any]:
    params = tiny_params(**{"floors": {}, "must_beat_baselines": False, **changed})
    deploy(line.paths, line.paths.release, line.paths.report("deploy"), params=params, problem=PROBLEM)
    return read_json(line.paths.report("deploy"))  # type: ignore[no-any-return]


def test_a_metric_below_its_floor_is_a_reason_with_floor_and_distance() -> None:
    assert judge(evaluation(accuracy=0.741), gate(floors={"accuracy": 0.78}), PROBLEM) == [
        "accuracy is 0.741: 0.039 below its floor of 0.78."
    ]


def test_a_metric_at_its_floor_passes() -> None:
    assert judge(evaluation(accuracy=0.78), gate(floors={"accuracy": 0.78}), PROBLEM) == []


def test_a_metric_that_should_be_low_has_a_ceiling() -> None:
    floors = {"log_loss": 0.5}
    assert judge(evaluation(log_loss=0.4), gate(floors=floors), PROBLEM) == []
    assert judge(evaluation(log_loss=0.61), gate(floors=floors), PROBLEM) == [
        "log_loss is 0.61: 0.11 above its ceiling of 0.5."
    ]


def test_a_floor_on_one_label_has_the_direction_of_its_metric() -> None:
    reasons = judge(evaluation(**{"f1[positive]": 0.5}), gate(floors={"f1[positive]": 0.6}), PROBLEM)
    assert reasons == ["f1[positive] is 0.5: 0.1 below its floor of 0.6."]


def test_a_metric_without_a_value_misses_its_floor() -> None:
    reasons = judge(evaluation(roc_auc=None), gate(floors={"roc_auc": 0.6}), PROBLEM)
    assert reasons == ["roc_auc is not defined on the test split, and has a floor of 0.6."]


def test_every_missed_floor_is_named_and_not_just_the_first() -> None:
    floors = {"accuracy": 0.9, "f1_macro": 0.9}
    assert len(judge(evaluation(f1_macro=0.5), gate(floors=floors), PROBLEM)) == 2


def test_a_baseline_that_is_not_beaten_refuses_only_where_params_ask_for_it() -> None:
    assert judge(evaluation(beaten=False), gate(must_beat_baselines=False), PROBLEM) == []
    assert judge(evaluation(beaten=True), gate(must_beat_baselines=True), PROBLEM) == []
    (reason,) = judge(evaluation(beaten=False), gate(must_beat_baselines=True), PROBLEM)
    assert reason.startswith("The baseline majority is not beaten: accuracy is 0.800 (")


def test_a_floor_on_an_unknown_metric_is_an_error_that_suggests_the_right_one() -> None:
    with pytest.raises(ParamsError, match=r"deploy\.floors\.acuracy is not a metric .* Did you mean 'accuracy'\?"):
        judge(evaluation(), gate(floors={"acuracy": 0.7}), PROBLEM)
    with pytest.raises(ParamsError, match="Known: accuracy, average_precision"):
        check_floors(["rouge"], PROBLEM.higher_is_better, PROBLEM)


def test_the_verdict_stands_in_the_report_and_in_the_manifest(line: Line) -> None:
    report = deployed(line)
    release = open_release(line.paths.release)
    assert (report["verdict"], report["version"]) == ("accepted", release.version)
    assert report["headline"]["metric"] == "accuracy"


def test_a_refusal_is_a_verdict_and_the_release_is_still_made(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    report = deployed(line, floors={"accuracy": 1.0})
    assert f"deploy: {report['version']} is refused. accuracy is" in capsys.readouterr().err
    release = read_release(line.paths.release)
    assert not release.accepted
    assert report["verdict"] == "refused"
    assert report["reasons"] == release.reasons
    assert "below its floor of 1." in release.reasons[0]
    assert "must not be used" in (line.paths.release / "README.md").read_text()


def test_the_manifest_names_the_files_the_parameters_the_data_and_the_packages(line: Line) -> None:
    deployed(line)
    manifest = read_release(line.paths.release).manifest
    assert sorted(manifest["files"]) == [
        "README.md",
        "golden.json",
        "model.onnx",
        "reference.parquet",
        "runtime.json",
        "tokenizer.json",
    ]
    assert manifest["parameters"]["collect"]["path"] == "data/samples/reviews.parquet"
    assert manifest["parameters"]["validate"]["max_quarantined"] == 0.02
    clean = read_json(line.paths.clean / "manifest.json")
    assert manifest["data"]["clean"] == {
        "manifest_sha256": sha256_of(line.paths.clean / "manifest.json"),
        "shards": {shard["name"]: {"rows": shard["rows"], "sha256": shard["sha256"]} for shard in clean["shards"]},
    }
    assert {"onnxruntime", "polars", "tokenizers", "torch"} <= set(manifest["packages"])
    assert manifest["metrics"] == read_json(line.paths.report("evaluate"))["metrics"]


def test_deploying_twice_gives_the_same_bytes(line: Line) -> None:
    deployed(line)
    first = {path.name: sha256_of(path) for path in sorted(line.paths.release.iterdir())}
    shutil.rmtree(line.paths.release)
    deployed(line)
    assert first == {path.name: sha256_of(path) for path in sorted(line.paths.release.iterdir())}


def test_the_golden_rows_compute_again_to_what_they_say(line: Line) -> None:
    deployed(line, golden_rows=5)
    golden = read_json(line.paths.release / "golden.json")
    assert len(golden["rows"]) == 5
    runtime = load_runtime(line.paths.release, threads=1)
    assert differences(golden, runtime, PROBLEM) == []
    row = golden["rows"][3]
    alone = runtime.predict(pl.DataFrame({"id": ["x"], "text": [row["inputs"]["text"]]})).row(0, named=True)
    assert alone["label"] == row["answer"]["label"]
    assert alone["probability"] == pytest.approx(row["answer"]["probability"], abs=1e-6)


def test_a_model_that_computes_otherwise_is_told_by_its_golden_rows(line: Line) -> None:
    deployed(line)
    golden = read_json(line.paths.release / "golden.json")
    golden["rows"][2]["outputs"]["logits"][0] += 0.5
    (said,) = differences(golden, load_runtime(line.paths.release, threads=1), PROBLEM)
    assert said.startswith(f"Row {golden['rows'][2]['id']}: logits is ")


def test_the_reference_has_descriptors_answers_and_embeddings_of_held_out_rows_and_no_text(line: Line) -> None:
    deployed(line, reference_rows=40)
    reference = pl.read_parquet(line.paths.release / "reference.parquet")
    test_ids = set(pl.read_parquet(line.paths.clean / "*.parquet").filter(pl.col("split") == "test")["id"])
    assert len(reference) == 40
    assert set(reference["id"]) <= test_ids
    assert {"num_chars", "label", "probability", "embedding"} <= set(reference.columns)
    assert "text" not in reference.columns
    assert reference.schema["embedding"] == pl.Array(pl.Float32, 32)
    assert np.isfinite(reference["embedding"].to_numpy()).all()


def test_the_chosen_rows_do_not_depend_on_the_order_or_the_sharding(tmp_path: Path, reviews: pl.DataFrame) -> None:
    for folder, rows, size in (("a", reviews, 600), ("b", reviews.sample(fraction=1.0, shuffle=True, seed=1), 70)):
        (tmp_path / folder).mkdir()
        writer = ShardWriter(tmp_path / folder, size, rows.schema)
        writer.write(rows)
        writer.finish()
    chosen = held_out(tmp_path / "a", 30)
    assert chosen.equals(held_out(tmp_path / "b", 30))
    assert set(chosen["split"]) == {"test"}
    assert chosen["id"].to_list() != sorted(chosen["id"])


def test_data_without_a_test_row_is_explained(tmp_path: Path, reviews: pl.DataFrame) -> None:
    writer = ShardWriter(tmp_path, 600, reviews.schema)
    writer.write(reviews.filter(pl.col("split") == "train"))
    writer.finish()
    with pytest.raises(DataError, match=r"no row of the test split\. clean\.split\.test"):
        held_out(tmp_path, 5)


def test_the_card_is_read_by_hugging_face_and_says_the_measured_figures(line: Line) -> None:
    deployed(line)
    card = ModelCard.load(line.paths.release / "README.md", ignore_metadata_errors=False)
    metrics = read_json(line.paths.report("evaluate"))["metrics"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == metrics["accuracy"]["value"]
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-classification")
    for section in ("Data", "Training", "Evaluation", "Limits"):
        assert f"## {section}" in card.text
    assert "professional film reviews" in card.text


def test_a_line_without_an_evaluation_says_what_is_missing(line: Line) -> None:
    line.paths.report("evaluate").unlink()
    with pytest.raises(DataError, match=r"evaluate\.json is not here"):
        deployed(line)
    assert not line.paths.release.exists()


def test_the_report_has_the_sizes(line: Line) -> None:
    report = deployed(line)
    assert report["bytes"]["model"] == (line.paths.release / "model.onnx").stat().st_size
    others = [path for path in line.paths.release.iterdir() if path.name != "manifest.json"]
    assert report["bytes"]["release"] == sum(path.stat().st_size for path in others)
