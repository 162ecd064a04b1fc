"""What the monitor says besides drift: estimated accuracy, health, rows worth labelling, rows that drive a drift."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.calibration import calibrate
from tasks.confidence import estimated_accuracy
from tasks.descriptors import EMBEDDING, INPUTS
from tasks.drift import Reference
from tasks.examples import driving_rows
from tasks.health import data_health, failures, faults, latency
from tasks.labelling import CHANCE, UNLIKE, UNSURE, worth_labelling


def answers(generator: np.random.Generator, num_rows: int, sureness: float) -> tuple[Any, Any]:
    """Calibrated probabilities of a two-way choice, and which of the answers are right."""
    probability_N = 1 / (1 + np.exp(-np.abs(generator.normal(0, sureness, num_rows))))
    return probability_N, generator.random(num_rows) < probability_N


def measured(right_N: Any) -> dict[str, float | None]:
    half = 1.96 * np.sqrt(right_N.mean() * (1 - right_N.mean()) / len(right_N))
    return {"value": right_N.mean(), "low": right_N.mean() - half, "high": right_N.mean() + half}


def test_the_interval_of_the_estimated_accuracy_holds_the_share_that_is_right() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for number in range(100):
        reference_M, right_M = answers(generator, 1000, 2.5)
        window_N, right_N = answers(generator, 200, 2.5)
        found = estimated_accuracy(window_N, reference_M, measured(right_M), 0.95, seed=number)
        assert found is not None
        assert found["low"] <= found["value"] <= found["high"]
        held += found["low"] - 0.03 <= right_N.mean() <= found["high"] + 0.03
    assert held >= 90


def test_answers_that_are_less_sure_are_estimated_to_be_right_less_often() -> None:
    generator = np.random.default_rng(2)
    reference_M, right_M = answers(generator, 2000, 3.0)
    window_N, right_N = answers(generator, 5000, 1.0)
    found = estimated_accuracy(window_N, reference_M, measured(right_M), 0.95, seed=1)
    assert found is not None
    assert right_M.mean() - right_N.mean() > 0.1
    assert found["value"] < right_M.mean() - 0.1


def test_the_same_seed_gives_the_same_estimate_and_without_figures_there_is_none() -> None:
    reference_M, right_M = answers(np.random.default_rng(3), 500, 2.0)
    assert estimated_accuracy(reference_M, reference_M, measured(right_M), 0.95, 1) == estimated_accuracy(
        reference_M, reference_M, measured(right_M), 0.95, 1
    )
    nothing = {"value": None, "low": None, "high": None}
    assert estimated_accuracy(reference_M, reference_M, nothing, 0.95, 1) is None
    assert estimated_accuracy(np.array([np.nan]), reference_M, measured(right_M), 0.95, 1) is None


def rows_of(texts: list[str | None], **columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"text": texts, "has_embedding": [True] * len(texts), **columns})


def test_health_counts_what_is_wrong_with_the_rows() -> None:
    rows = rows_of(["a", "a", " ", None], probability=[0.5, None, float("nan"), 1.5], latency_ms=[1.0, 2.0, 3.0, 40.0])
    described = pl.DataFrame({"num_chars": [1, 1, 900, 0], "num_redacted": [0, 2, 0, 0]})
    reference = pl.DataFrame({"num_chars": [1, 50], "num_redacted": [0, 2]})
    found = data_health(faults(rows, described, {"text": pl.String()}), described, reference)
    assert found == {
        "rows": 4,
        "missing": {"text": 0.5},
        "repeated": 0.25,
        "outside": {"num_chars": 0.5},
        "without_embedding": 0.0,
        "redacted": 0.25,
        "without_confidence": 0.75,
    }
    assert latency(rows) == {"p50": 3.0, "p95": 40.0, "p99": 40.0, "longest": 40.0}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, {"answered": 90.0, "failed": 10.0}, (100, 10, 0.1)),
        (
            {"answered": 90.0, "failed": 10.0},
            {"answered": 180.0, "failed": 20.0, "sent_away": 5.0},
            (105, 10, 0.095238),
        ),
        ({"answered": 90.0, "failed": 10.0}, {"answered": 4.0}, (4, 0, 0.0)),  # the server has started again
        ({"answered": 90.0}, {"answered": 90.0}, (0, 0, 0.0)),
    ],
)
def test_failures_are_counted_since_the_last_look(before: Any, now: Any, expected: tuple[float, float, float]) -> None:
    found = failures(before, now)
    assert found is not None
    assert (found["requests"], found["failed"], found["error_rate"]) == expected


def test_without_a_server_failures_are_unknown_and_not_none() -> None:
    assert failures({"answered": 1.0}, None) is None


def test_rows_to_label_are_those_that_teach_most_and_some_by_chance() -> None:
    generator = np.random.default_rng(4)
    probability_N = generator.uniform(0.5, 1.0, 400)
    embedding_NE = generator.standard_normal((400, 5))
    embedding_NE[:50] *= 6
    chosen = worth_labelling(probability_N, embedding_NE, 400, 40, seed=1)
    by_why = {why: chosen.filter(pl.col("why") == why)["place"].to_numpy() for why in (UNSURE, UNLIKE, CHANCE)}
    assert [len(places) for places in by_why.values()] == [15, 15, 10]
    assert chosen["place"].n_unique() == 40
    assert probability_N[by_why[UNSURE]].max() < np.quantile(probability_N, 0.25)
    lengths_N = np.linalg.norm(embedding_NE, axis=1)
    assert lengths_N[by_why[UNLIKE]].min() > np.quantile(lengths_N, 0.75)
    assert chosen.equals(worth_labelling(probability_N, embedding_NE, 400, 40, seed=1))
    assert set(chosen["why"][:20]) == {UNSURE, UNLIKE, CHANCE}, "whoever stops half-way has some of each"


def test_rows_to_label_do_not_say_the_same() -> None:
    probability_N = np.concatenate([np.full(60, 0.5), np.linspace(0.51, 0.6, 40)])
    embedding_NE = np.concatenate([np.ones((60, 3)), np.random.default_rng(5).standard_normal((40, 3)) * 3])
    chosen = worth_labelling(probability_N, embedding_NE, 100, 24, seed=1)
    of_the_same = chosen.filter((pl.col("place") < 60) & (pl.col("why") != CHANCE))
    assert len(of_the_same) <= 2


def test_where_nothing_is_known_of_the_rows_chance_alone_chooses() -> None:
    assert worth_labelling(None, None, 9, 4, seed=1)["why"].to_list() == [CHANCE] * 4
    assert sorted(worth_labelling(None, None, 3, 9, seed=1)["place"]) == [0, 1, 2]
    assert len(worth_labelling(np.array([]), None, 0, 9, seed=1)) == 0


def test_the_rows_that_drive_a_drift_are_on_the_side_to_which_it_goes() -> None:
    generator = np.random.default_rng(6)
    held_out = pl.DataFrame(
        {
            "length": generator.normal(100, 20, 400),
            "language": ["en"] * 390 + ["de"] * 10,
            "embedding": pl.Series(generator.standard_normal((400, 6)), dtype=pl.Array(pl.Float32, 6)),
        }
    )
    reference = Reference(held_out, {"length": INPUTS, "language": INPUTS, "embedding": EMBEDDING})
    window = pl.DataFrame(
        {"length": [*generator.normal(100, 20, 60), *[5.0] * 20], "language": ["en"] * 60 + ["de"] * 10 + ["xx"] * 10}
    )
    embedding_ND = generator.standard_normal((80, 6))
    embedding_ND[70:] += 4
    sample = reference.sample_of(window, embedding_ND)
    calibration = calibrate(reference, 80, 0.05, 1000, seed=1)
    figures = reference.figures(sample)
    drifted = {name: figure for name, figure in figures.items() if calibration.has_drifted(name, figure)}
    assert set(drifted) == {"length", "language", "embedding", "embedding_distance"}
    repeated = np.zeros(80, dtype=np.bool_)
    repeated[75:] = True
    found = driving_rows(reference, sample, drifted, repeated, 10)
    assert len(found) == 10
    assert set(found["place"][:5]) == {70, 71, 72, 73, 74}, "all four, and each text once"
    assert set(found["place"]) <= set(range(60, 75))
    assert all(len(why) == 3 for why in found["why"][:5])
    assert driving_rows(reference, sample, {}, repeated, 10).is_empty()
