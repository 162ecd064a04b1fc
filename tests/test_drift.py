"""The figures of drift against other people's code, and their thresholds against chance itself."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp

from tasks.calibration import Calibration, calibrate, calibrated, size_looked_at
from tasks.descriptors import ANSWERS, EMBEDDING, INPUTS
from tasks.drift import (
    MOST_AXES,
    Reference,
    evenly,
    fit_projection,
    in_words,
    inhomogeneity,
    kolmogorov_smirnov,
    mean_distance_between,
    mean_distance_within,
    total_variation,
)
from tasks.errors import DataError

FAMILIES = {"length": INPUTS, "words": INPUTS, "label": ANSWERS, "embedding": EMBEDDING}


def rows_of(generator: np.random.Generator, num_rows: int, *, moved: float = 0.0, width: int = 24) -> pl.DataFrame:
    """Texts of some length, whose number of words follows from it, a label, and an embedding with a main axis."""
    length_N = generator.gamma(4.0, 25.0, num_rows) * (1 + moved)
    embedding_ND = generator.standard_normal((num_rows, width)) * 0.2
    embedding_ND[:, 0] += 3 * generator.standard_normal(num_rows)
    embedding_ND[:, 5] += moved
    return pl.DataFrame(
        {
            "length": length_N,
            "words": np.round(length_N / 5),
            "label": np.where(embedding_ND[:, 0] > 0, "positive", "negative"),
            "embedding": pl.Series(embedding_ND.astype(np.float32), dtype=pl.Array(pl.Float32, width)),
        }
    )


def figures(reference: Reference, window: pl.DataFrame) -> dict[str, float]:
    return reference.figures(reference.sample_of(window.drop("embedding"), window["embedding"].to_numpy()))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(rows_of(np.random.default_rng(0), 800), FAMILIES)


@pytest.fixture(scope="module")
def calibration(reference: Reference) -> Calibration:
    return calibrate(reference, 100, 0.05, 2000, seed=1)


def test_the_distance_of_numbers_is_that_of_kolmogorov_and_smirnov() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.integers(0, 9, 70).astype(float), generator.integers(2, 12, 400).astype(float)
    assert kolmogorov_smirnov(one, other) == pytest.approx(ks_2samp(one, other).statistic)
    assert kolmogorov_smirnov(one, one) == 0


def test_the_distance_of_kinds_is_the_share_of_rows_that_would_have_to_be_others() -> None:
    seen = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    assert total_variation(seen, np.array([0] * 6 + [1] * 4)) == pytest.approx(0.3)
    assert total_variation(np.array([-1, -1, 0, 0]), np.array([0, 0])) == pytest.approx(0.5)


def test_the_distance_of_embeddings_is_the_energy_distance_over_the_mean_distance() -> None:
    generator = np.random.default_rng(4)
    one, other = generator.standard_normal((1200, 3)), generator.standard_normal((40, 3)) + 1
    between, within_one = cdist(one, other).mean(), cdist(one, one).sum() / (1200 * 1199)
    within_other = cdist(other, other).sum() / (40 * 39)
    expected = np.sqrt((2 * between - within_one - within_other) / (2 * between))
    found = inhomogeneity(mean_distance_between(one, other), mean_distance_within(one), mean_distance_within(other))
    assert found == pytest.approx(expected)


def test_an_embedding_of_any_width_becomes_at_most_sixteen_numbers_of_variance_one() -> None:
    rows = np.random.default_rng(5).standard_normal((900, 384)) * np.linspace(9, 0.1, 384)
    projection = fit_projection(rows)
    assert projection is not None
    assert projection(rows).shape == (900, MOST_AXES + 1)
    np.testing.assert_allclose(projection(rows).std(axis=0), 1)
    again = fit_projection(rows.copy())
    assert again is not None
    np.testing.assert_array_equal(projection(rows), again(rows))
    assert fit_projection(rows[:10]) is None


def test_a_shift_along_an_axis_of_hardly_any_variance_is_seen(reference: Reference, calibration: Calibration) -> None:
    window = rows_of(np.random.default_rng(6), 100)
    moved = window["embedding"].to_numpy().copy()
    moved[:, 20] += 0.8  # of all the variance it has a thousandth
    found = figures(reference, window.with_columns(embedding=pl.Series(moved, dtype=pl.Array(pl.Float32, 24))))
    assert not calibration.has_drifted("embedding", figures(reference, window)["embedding"])
    assert calibration.has_drifted("embedding", found["embedding"])


def test_chance_passes_any_threshold_as_rarely_as_was_asked(reference: Reference, calibration: Calibration) -> None:
    generator = np.random.default_rng(7)
    num_windows, alarms = 600, 0
    for _ in range(num_windows):
        found = figures(reference, rows_of(generator, 100))
        alarms += any(calibration.has_drifted(name, figure) for name, figure in found.items())
    # Against one reference, which is a sample itself; so the bounds are wider than the binomial's.
    assert 0.02 <= alarms / num_windows <= 0.085


def test_a_p_value_and_its_threshold_say_the_same(reference: Reference, calibration: Calibration) -> None:
    generator = np.random.default_rng(8)
    for moved in np.linspace(0, 0.6, 30):
        found = figures(reference, rows_of(generator, 100, moved=float(moved)))
        p_values = calibration.p_values(found)
        for name, figure in found.items():
            assert calibration.has_drifted(name, figure) == (p_values[name] <= 0.05 + 1e-9), (name, figure)


def test_columns_that_say_the_same_cost_no_power() -> None:
    rows = rows_of(np.random.default_rng(9), 500)
    copies = {f"copy_{number}": pl.col("length") for number in range(12)}
    others = {f"other_{number}": pl.Series(np.random.default_rng(number).random(500)) for number in range(12)}

    def threshold(rows: pl.DataFrame) -> float:
        names = dict.fromkeys((name for name in rows.columns if name not in ("label", "embedding", "words")), INPUTS)
        return calibrate(Reference(rows, names), 100, 0.01, 4000, seed=1).thresholds["length"]

    alone = threshold(rows)
    assert threshold(rows.with_columns(**copies)) == pytest.approx(alone, abs=0.004)
    assert threshold(rows.with_columns(**others)) > alone + 0.02


def test_a_small_reference_is_trusted_less() -> None:
    few = Reference(rows_of(np.random.default_rng(10), 120), FAMILIES)
    many = Reference(rows_of(np.random.default_rng(10), 1200), FAMILIES)
    rate, window = 0.05, 400
    assert (
        calibrate(few, window, rate, 1000, seed=1).thresholds["length"]
        > 1.4 * calibrate(many, window, rate, 1000, seed=1).thresholds["length"]
    )


def test_a_million_rows_make_the_thresholds_no_lower_than_the_reference_allows(reference: Reference) -> None:
    looked_at, size = size_looked_at(1_000_000, 100, 800)
    assert (looked_at, size) == (2400, 1600)
    thresholds = calibrate(reference, size, 0.05, 1000, seed=1).thresholds
    assert thresholds["length"] > 0.04
    assert size_looked_at(100, 100, 800) == (100, 100)
    assert size_looked_at(450, 100, 800) == (450, 400)
    assert size_looked_at(100, 100, 20) == (100, 100)


def test_the_projection_is_fitted_on_other_rows_than_those_that_are_compared() -> None:
    """A projection fits its own rows best: compared with these, rows of the same kind would seem to have moved."""
    generator = np.random.default_rng(11)
    reference = Reference(rows_of(generator, 400, width=200), FAMILIES)
    calibration = calibrate(reference, 400, 0.01, 1000, seed=1)
    for _ in range(5):
        found = figures(reference, rows_of(generator, 400, width=200))
        assert not calibration.has_drifted("embedding_distance", found["embedding_distance"])


def test_a_kind_that_nobody_has_seen_is_a_shift(reference: Reference) -> None:
    window = rows_of(np.random.default_rng(12), 100).with_columns(label=pl.lit("neutral"))
    assert figures(reference, window)["label"] == pytest.approx(1)


def test_what_is_missing_is_a_shift_and_no_error(reference: Reference, calibration: Calibration) -> None:
    window = rows_of(np.random.default_rng(13), 100)
    holes = window.with_columns(length=pl.when(pl.int_range(100) % 2 == 0).then(pl.lit(None)).otherwise("length"))
    assert calibration.has_drifted("length", figures(reference, holes)["length"])
    assert "words" not in figures(reference, window.drop("words"))
    bare = reference.figures(reference.sample_of(window.drop("embedding"), None))
    assert set(bare) == {"length", "words", "label"}


def test_a_constant_column_is_no_test_until_it_moves() -> None:
    rows = rows_of(np.random.default_rng(14), 300).with_columns(redacted=pl.lit(0))
    reference = Reference(rows, {**FAMILIES, "redacted": INPUTS})
    calibration = calibrate(reference, 100, 0.05, 1000, seed=1)
    assert calibration.thresholds["redacted"] == 0
    window = rows_of(np.random.default_rng(15), 100).with_columns(redacted=pl.lit(0))
    assert not calibration.has_drifted("redacted", figures(reference, window)["redacted"])
    window = window.with_columns(redacted=pl.int_range(100) % 4)
    assert calibration.has_drifted("redacted", figures(reference, window)["redacted"])


def test_the_same_seed_gives_the_same_bits_and_the_kept_calibration_too(reference: Reference, tmp_path: Path) -> None:
    made = calibrate(reference, 50, 0.05, 1000, seed=1)
    kept = calibrated(tmp_path, "sha-1", reference, 50, 0.05, 1000, 1)
    again = calibrated(tmp_path, "sha-1", reference, 50, 0.05, 1000, 1)
    for other in (kept, again):
        np.testing.assert_array_equal(made.null, other.null)
        np.testing.assert_array_equal(made.ranks, other.ranks)
    assert len(list(tmp_path.iterdir())) == 1
    calibrated(tmp_path, "sha-2", reference, 50, 0.05, 1000, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kept_calibration_that_is_damaged_is_made_anew(reference: Reference, tmp_path: Path) -> None:
    kept = calibrated(tmp_path, "sha-1", reference, 50, 0.05, 1000, 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    np.testing.assert_array_equal(calibrated(tmp_path, "sha-1", reference, 50, 0.05, 1000, 1).null, kept.null)


def test_a_reference_without_rows_is_said_to_have_none() -> None:
    with pytest.raises(DataError, match="has no rows"):
        Reference(rows_of(np.random.default_rng(0), 5).clear(), FAMILIES)


def test_rows_are_chosen_evenly_and_sizes_have_words() -> None:
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 10).tolist() == [0, 1, 2]
    assert [in_words(figure) for figure in (0.05, 0.1, 0.2, 0.3, 0.5)] == [
        "negligible", "small", "clear", "large", "very large",
    ]  # fmt: skip
