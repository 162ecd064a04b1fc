"""When two files agree: to the bit, within a stated tolerance, or not, and where they first differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from flows.agreement import DIFFERENT, IDENTICAL, WITHIN, Agreement, Moved, compare, where_orders_part

FIRM, MOVED = Moved(), Moved(inputs=True)


def pair(tmp_path: Path, name: str) -> tuple[Path, Path]:
    for side in ("before", "after"):
        (tmp_path / side).mkdir(exist_ok=True)
    return tmp_path / "before" / name, tmp_path / "after" / name


def of_json(tmp_path: Path, was: Any, now: Any, moved: Moved = FIRM, name: str = "report.json") -> Agreement:
    before, after = pair(tmp_path, name)
    before.write_text(json.dumps(was))
    after.write_text(json.dumps(now))
    return compare(name, before, after, moved)


@pytest.mark.parametrize(
    ("was", "now", "level"),
    [
        (0.848, 0.848, IDENTICAL),
        (0.848, 0.8559, WITHIN),
        (0.848, 0.8571, DIFFERENT),
        (0.0001, 0.005, WITHIN),
        (1234.5, 1245.0, WITHIN),
        (None, 0.1, DIFFERENT),
        (True, False, DIFFERENT),
        ("positive", "negative", DIFFERENT),
        ("accuracy 0.848 (0.84 to 0.85)", "accuracy 0.849 (0.84 to 0.85)", WITHIN),
        ("accuracy 0.848", "accuracy of 0.848", DIFFERENT),
        ("600 rows", "601 rows", DIFFERENT),
        ([0.1, 0.2], [0.1, 0.2, 0.3], DIFFERENT),
    ],
)
def test_numbers_have_a_tolerance_and_words_have_none(tmp_path, was, now, level):
    assert of_json(tmp_path, {"a": {"b": was}}, {"a": {"b": now}}).level == level


def test_what_first_differs_is_named_by_its_place(tmp_path):
    was = {"metrics": {"accuracy": {"value": 0.9}}, "rows": [1, 2]}
    now = {"metrics": {"accuracy": {"value": 0.7}}, "rows": [1, 3]}
    found = of_json(tmp_path, was, now)
    assert (found.level, found.num_off) == (DIFFERENT, 2)
    assert found.figures == "2 differences; first metrics.accuracy.value: 0.9 → 0.7"
    assert of_json(tmp_path, {"a": 1}, {"b": 1}).figures == "2 differences; first a: there → not there"


def test_the_furthest_figure_within_tolerance_is_told(tmp_path):
    found = of_json(tmp_path, {"a": 1.0, "b": 1.0}, {"a": 1.001, "b": 1.005})
    assert found.level == WITHIN
    assert found.figures == "2 figures are off, at most by 50% of what is tolerated; b: 1 → 1.005"


def test_whole_numbers_may_move_only_where_what_is_read_has_moved(tmp_path):
    assert of_json(tmp_path, {"count": 1000}, {"count": 1005}).level == DIFFERENT
    assert of_json(tmp_path, {"count": 1000}, {"count": 1005}, MOVED).level == WITHIN
    assert of_json(tmp_path, {"count": 1000}, {"count": 1070}, MOVED).level == DIFFERENT


def test_a_hash_follows_what_it_is_of_and_the_rows_that_training_saw_never_move(tmp_path):
    was, now = {"sha256": "a" * 64, "version": "sha-0123abcd"}, {"sha256": "b" * 64, "version": "sha-4567abcd"}
    assert of_json(tmp_path, was, now).level == DIFFERENT
    assert of_json(tmp_path, was, now, Moved(hashed=True)).level == WITHIN
    assert of_json(tmp_path, was, now, MOVED).level == WITHIN
    seen = [{"rows_seen_sha256": letter * 64} for letter in "ab"]
    assert of_json(tmp_path, *seen, Moved(inputs=True, hashed=True)).level == DIFFERENT


@pytest.mark.parametrize(
    ("was", "now", "part"),
    [
        ("abc", "abx", "between epoch 1, step 20 and epoch 2, step 30"),
        ("abc", "xyz", "up to epoch 1, step 10 already"),
        ("abc", "ab", "after epoch 1, step 20, where one of them ends"),
        ("", "ab", ""),
        ("abc", "abc", ""),
    ],
)
def test_where_two_trainings_see_other_rows_is_named(tmp_path, was, now, part):
    places = ("epoch 1, step 10", "epoch 1, step 20", "epoch 2, step 30")
    logs = [[f"{place}: {letter * 16}" for place, letter in zip(places, side, strict=False)] for side in (was, now)]
    assert where_orders_part(*logs) == part
    found = of_json(tmp_path, *({"rows_seen_by_step": log} for log in logs), MOVED)
    assert found.level == (IDENTICAL if was == now else DIFFERENT)
    assert part in found.figures


def test_golden_rows_have_the_tolerance_of_golden_rows(tmp_path):
    was, now = {"outputs": [0.1, 3.0]}, {"outputs": [0.115, 3.05]}
    assert of_json(tmp_path, was, now).level == DIFFERENT
    assert of_json(tmp_path, was, now, name="golden.json").level == WITHIN


@pytest.mark.parametrize(
    ("noise", "level"), [(0.0, IDENTICAL), (1e-3, WITHIN), (0.5, DIFFERENT), (float("nan"), DIFFERENT)]
)
def test_tensors_may_be_off_by_a_share_of_their_norm(tmp_path, noise, level):
    before, after = pair(tmp_path, "model.safetensors")
    weights = {"w": torch.randn(30, 20, generator=torch.Generator().manual_seed(1)), "b": torch.zeros(5)}
    save_file(weights, before)
    save_file({**weights, "w": weights["w"] * (1 + noise)}, after)
    found = compare("model.safetensors", before, after, FIRM)
    assert found.level == level
    assert level == IDENTICAL or found.first.where == "w"


def test_tensors_of_another_name_shape_or_kind_differ(tmp_path):
    before, after = pair(tmp_path, "model.safetensors")
    for now in ({"v": torch.ones(2)}, {"w": torch.ones(3)}, {"w": torch.ones(2, dtype=torch.bfloat16)}):
        save_file({"w": torch.ones(2)}, before)
        save_file(now, after)
        assert compare("model.safetensors", before, after, MOVED).level == DIFFERENT


def a_graph(weights: np.ndarray, operation: str = "MatMul") -> bytes:
    node = helper.make_node(operation, ["x", "w"], ["y"])
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph).SerializeToString()


def test_an_onnx_model_is_its_graph_and_its_weights(tmp_path):
    before, after = pair(tmp_path, "model.onnx")
    weights = np.arange(4, dtype=np.float32).reshape(2, 2)
    before.write_bytes(a_graph(weights))
    levels = {}
    for name, now in {
        "off": a_graph(weights * 1.001),
        "far": a_graph(weights * 2),
        "other": a_graph(weights, "Add"),
    }.items():
        after.write_bytes(now)
        levels[name] = compare("model.onnx", before, after, FIRM).level
    assert levels == {"off": WITHIN, "far": DIFFERENT, "other": DIFFERENT}
    assert onnx.load(before).graph.node[0].op_type == "MatMul"


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_are_the_same_but_for_what_is_computed_and_for_answers_that_flip(tmp_path, kind):
    before, after = pair(tmp_path, f"rows.{kind}")
    write = {"parquet": pl.DataFrame.write_parquet, "arrow": pl.DataFrame.write_ipc}[kind]
    rows = pl.DataFrame(
        {
            "id": [str(number) for number in range(200)],
            "tokens": [[number, 1] for number in range(200)],
            "label": ["good", "bad"] * 100,
            "embedding": pl.Series([[0.5, float(number)] for number in range(200)], dtype=pl.Array(pl.Float32, 2)),
        }
    )
    write(rows, before)

    def level(now: pl.DataFrame, moved: Moved = FIRM) -> str:
        write(now, after)
        return compare(f"rows.{kind}", before, after, moved).level

    closer = pl.Series("embedding", [[0.501, number * 1.001] for number in range(200)], dtype=pl.Array(pl.Float32, 2))
    flipped = pl.Series("label", ["bad", *rows["label"][1:]])
    assert level(rows) == IDENTICAL
    assert level(rows.with_columns(closer)) == WITHIN
    far = pl.Series("embedding", [[9.0, 0.0]] * 200, dtype=pl.Array(pl.Float32, 2))
    assert level(rows.with_columns(far)) == DIFFERENT
    assert level(rows.with_columns(flipped)) == DIFFERENT
    assert level(rows.with_columns(flipped), MOVED) == WITHIN
    assert level(rows.with_columns(label=pl.lit("good")), MOVED) == DIFFERENT
    assert level(rows.with_columns(tokens=pl.Series([[number, 2] for number in range(200)]))) == DIFFERENT
    assert level(rows.head(199), MOVED) == DIFFERENT
    assert level(rows.reverse()) == DIFFERENT


def test_a_card_may_differ_in_its_figures_and_of_other_files_bytes_decide(tmp_path):
    before, after = pair(tmp_path, "README.md")
    before.write_text("# Card\naccuracy 0.848 of sha-0123abcd\n")
    after.write_text("# Card\naccuracy 0.849 of sha-4567abcd\n")
    assert compare("README.md", before, after, MOVED).level == WITHIN
    assert compare("README.md", before, after, FIRM).level == DIFFERENT
    after.write_text("# Card\n")
    assert compare("README.md", before, after, MOVED).figures == "its lines: 2 → 1"
    assert compare("weights.bin", before, after, MOVED).level == DIFFERENT
    after.unlink()
    assert compare("README.md", before, after, MOVED).figures == "the file: there → not there"
