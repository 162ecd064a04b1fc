"""Two models on the same rows: tests, intervals and power, against exact computations and published ones."""

import itertools

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, multinomial

from tasks.paired import Discordance, mcnemar_power, score, score_power
from tasks.resampled import mean_of, resample

# As a decision spends it: 0.05 over 20 uses.
LEVEL = 0.0025


def test_superiority_is_mcnemars_exact_test_in_one_direction():
    for gained, lost in [(10, 2), (2, 10), (7, 7), (0, 0), (130, 90)]:
        found = Discordance(1000, gained, lost).p_above(0)
        expected = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1
        assert found == pytest.approx(expected)
        assert Discordance(1000, gained, lost).p_below(0) == pytest.approx(Discordance(1000, lost, gained).p_above(0))


def test_the_score_test_and_its_interval_give_published_figures():
    # Tango 1998, the last example: 44 pairs of which one differs, a margin of 0.1.
    assert float(score(0, 1, 44, -0.1)) == pytest.approx(1.709, abs=5e-4)
    assert Discordance(44, 0, 1).p_above(-0.1) == pytest.approx(0.044, abs=5e-4)
    # Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness before and after: 21 pairs, 1 and 7 differ.
    assert Discordance(21, 1, 7).interval(0.025) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_restricted_share_is_the_likeliest_one():
    gained, lost, num_rows, margin = 7, 15, 200, 0.03
    shares = np.linspace(margin, (1 + margin) / 2, 200_001)[1:-1]
    log_likelihood = (
        gained * np.log(shares - margin)
        + lost * np.log(shares)
        + (num_rows - gained - lost) * np.log(1 - 2 * shares + margin)
    )
    best = shares[log_likelihood.argmax()]
    variance = num_rows * (2 * best - margin * (1 + margin))
    assert float(score(gained, lost, num_rows, -margin)) == pytest.approx(
        (gained - lost + num_rows * margin) / np.sqrt(variance), rel=1e-3
    )


def test_the_score_test_keeps_its_level_exactly_computed():
    """Its size, over all that the rows might be, at the margin itself; whatever share of rows the two differ on."""
    sizes = {
        (num_rows, margin, level, extra): score_power(num_rows, margin + 2 * extra, margin, level, -margin) / level
        for num_rows in (200, 500, 1000, 2567, 10_000)
        for margin in (0.02, 0.03, 0.05, 0.1)
        for level in (0.05, LEVEL)
        for extra in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    }
    assert max(sizes.values()) < 1.06
    assert max(size for (*_, level, _), size in sizes.items() if level == LEVEL) < 1.03
    # And it is no test that never rejects.
    assert np.median(list(sizes.values())) > 0.9


def test_power_is_the_sum_over_all_outcomes():
    num_rows, differing, margin, level = 30, 0.4, 0.3, 0.05
    half = differing / 2
    by_hand = {"score": 0.0, "mcnemar": 0.0}
    for gained, lost in itertools.product(range(num_rows + 1), repeat=2):
        if gained + lost <= num_rows:
            rows = [gained, lost, num_rows - gained - lost]
            found = Discordance(num_rows, gained, lost)
            shown = found.p_above(-margin) <= level
            by_hand["score"] += shown * multinomial.pmf(rows, num_rows, [half, half, 1 - differing])
            better = found.p_above(0) <= level
            by_hand["mcnemar"] += better * multinomial.pmf(rows, num_rows, [0.35, 0.05, 0.6])
    assert score_power(num_rows, differing, margin, level) == pytest.approx(by_hand["score"], abs=1e-8)
    assert mcnemar_power(num_rows, differing, 0.3, level) == pytest.approx(by_hand["mcnemar"], abs=1e-8)


@pytest.mark.parametrize("gained", [0, 3, 40, 128])
def test_the_smallest_differences_have_the_power_that_they_are_said_to_have(gained):
    found = Discordance(2567, gained, gained)
    gain, margin = found.smallest_gain(LEVEL, 0.8), found.smallest_margin(LEVEL, 0.8)
    # With a confidence of 0.9 the two differ on no larger share of all rows.
    differing = beta.ppf(0.9, 2 * gained + 1, 2567 - 2 * gained)
    assert mcnemar_power(2567, max(differing, gain), gain, LEVEL) == pytest.approx(0.8, abs=0.001)
    # Counts are whole numbers: where they are small, so is the choice of powers.
    assert 0.8 <= score_power(2567, differing, margin, LEVEL) < 0.84
    assert score_power(2567, 2 * gained / 2567, margin, LEVEL) > 0.8


def test_the_rows_that_a_margin_takes_have_the_power():
    found = Discordance(500, 25, 25)
    assert found.smallest_margin(LEVEL, 0.8) > 0.03
    rows = found.rows_for(0.03, LEVEL, 0.8)
    assert rows > 500
    assert score_power(rows, beta.ppf(0.9, 51, 450), 0.03, LEVEL) == pytest.approx(0.8, abs=0.02)


def test_few_rows_show_little_and_many_show_much():
    few, many = Discordance(60, 3, 3), Discordance(6000, 300, 300)
    assert few.p_above(-0.03) > LEVEL > many.p_above(-0.03)
    assert few.smallest_margin(LEVEL, 0.8) > 0.1 > 0.02 > many.smallest_margin(LEVEL, 0.8)


def test_intervals_and_tests_say_the_same_and_turn_round_with_the_sides():
    found, turned = Discordance(900, 60, 41), Discordance(900, 41, 60)
    low, high = found.interval(0.01)
    assert found.p_above(low) == pytest.approx(0.01, rel=1e-3)
    assert found.p_below(high) == pytest.approx(0.01, rel=1e-3)
    assert turned.interval(0.01) == pytest.approx((-high, -low))
    assert low < found.effect < high


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (10, 0), (0, 10), (5, 5)])
def test_where_all_or_none_differ_everything_stays_defined(gained, lost):
    found = Discordance(10, gained, lost)
    low, high = found.interval(LEVEL)
    assert -1 <= low <= found.effect <= high <= 1
    for bound in (-0.9, -0.03, 0.0, 0.03, 0.9):
        assert 0 <= found.p_above(bound) <= 1
        assert 0 <= found.p_below(bound) <= 1
    assert 0 < found.smallest_gain(LEVEL, 0.8) <= 1
    assert 0 < found.smallest_margin(LEVEL, 0.8) <= 1


def test_coverage_of_the_interval_is_what_it_says():
    num_rows, chances = 200, (0.03, 0.06, 0.91)
    reached = 0.0
    for gained in range(22):
        for lost in range(32):
            low, high = Discordance(num_rows, gained, lost).interval(0.025)
            if low <= -0.03 <= high:
                reached += multinomial.pmf([gained, lost, num_rows - gained - lost], num_rows, chances)
    left_out = binom.sf(21, num_rows, chances[0]) + binom.sf(31, num_rows, chances[1])
    assert left_out < 1e-4
    assert reached == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.0025])
def test_what_could_be_shown_rests_on_the_difference_at_which_the_p_value_comes_to_the_level(level):
    gains = np.random.default_rng(0).normal(size=300)
    found = resample(mean_of(gains), gains - gains.mean(), resamples=1000, seed=1)
    # At a power of a half it is as far off as the p-value needs, measured in errors.
    critical = found.smallest_gain(level, power=0.5) / found.largest_error
    bound = found.effect - critical * found.error
    assert found.p_above(bound - 1e-9) <= level < found.p_above(bound + 1e-9)
