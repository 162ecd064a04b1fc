"""The verdict: which way is open, what closes it, and that it keeps its error rate (in short; at length under slow)."""

import numpy as np
import pytest

from tasks.gate import Contender, Gate, decide, falls, holm, improved_by, judge_slices, median_at_most, over_limits
from tasks.paired import Discordance
from tests.gate_worlds import RULES, World, judged, levels, limit

LEVEL = 0.0025
EQUAL, BETTER, WORSE = Discordance(2500, 120, 120), Discordance(2500, 180, 80), Discordance(2500, 40, 240)


def rules(**changed) -> Gate:
    return RULES.model_copy(update={"margin": 0.03, **changed})


def test_what_is_shown_to_be_better_is_promoted_whatever_else_it_costs():
    found = decide(BETTER, {}, [], rules(), LEVEL)
    assert (found.verdict, found.way) == ("promote", "superior")
    assert found.p_better < LEVEL


def test_what_is_only_better_by_chance_is_kept_out():
    lucky = Discordance(2500, 135, 105)
    found = decide(lucky, {}, [], rules(), LEVEL)
    assert 0.025 < found.p_better < 0.05  # enough for somebody who decides once
    assert (found.verdict, found.way) == ("keep", None)


def test_an_equal_one_is_promoted_where_something_named_improves_and_only_there():
    assert decide(EQUAL, {}, [], rules(), LEVEL).verdict == "keep"
    found = decide(EQUAL, {}, ["size"], rules(), LEVEL)
    assert (found.verdict, found.way) == ("promote", "margin")


def test_a_worse_one_is_kept_out_however_small_it_is():
    found = decide(WORSE, {}, ["size", "latency"], rules(), LEVEL)
    assert (found.verdict, found.way) == ("keep", None)
    assert found.p_worse < LEVEL


def test_one_worse_by_nearly_the_margin_is_kept_out():
    nearly = Discordance(2500, 90, 90 + int(0.025 * 2500))
    assert nearly.effect > -0.03
    assert decide(nearly, {}, ["size"], rules(), LEVEL).verdict == "keep"


def test_a_slice_that_is_shown_to_be_worse_asks_a_person_on_both_ways():
    parts = {("label", "a"): Discordance(1250, 170, 10), ("label", "b"): Discordance(1250, 10, 140)}
    for evidence, improved in ((BETTER, []), (EQUAL, ["size"])):
        found = decide(evidence, parts, improved, rules(slice_margin=0.05), LEVEL)
        assert found.verdict == "ask"
        assert [part.value for part in found.worse_slices] == ["b"]
        assert decide(evidence, parts, improved, rules(slice_margin=0.2), LEVEL).verdict == "promote"


def test_a_slice_that_looks_worse_by_chance_or_cannot_be_judged_keeps_nothing_out():
    parts = {("length", "1"): Discordance(60, 4, 9), ("length", "2"): None}
    found = decide(BETTER, parts, [], rules(), LEVEL)
    assert found.verdict == "promote"
    assert [part.p_value for part in found.slices][1] == 1


def test_slices_are_judged_against_all_of_them_by_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    one = Discordance(300, 8, 40)
    alone = judge_slices({("a", "1"): one}, rules(slice_margin=0.05))[0]
    several = {("a", str(n)): one if n == 1 else EQUAL for n in range(1, 60)}
    among = judge_slices(several, rules(slice_margin=0.05))[0]
    assert alone.worse
    assert not among.worse
    assert alone.p_value == among.p_value < 0.05


def test_a_margin_that_the_rows_cannot_show_is_refused_with_the_rows_that_it_takes():
    found = decide(EQUAL, {}, ["size"], rules(margin=0.01), LEVEL)
    assert found.margin_is_refused
    assert (found.verdict, found.way) == ("ask", None)
    assert found.smallest_margin > 0.01
    assert EQUAL.rows_for(0.01, LEVEL, 0.8) > 2500
    assert EQUAL.rows_for(found.smallest_margin, LEVEL, 0.8) == pytest.approx(2500, rel=0.02)
    # It closes one way only, and where nothing improves it would not have been open.
    assert decide(BETTER, {}, [], rules(margin=0.01), LEVEL).verdict == "promote"
    assert decide(EQUAL, {}, [], rules(margin=0.01), LEVEL).verdict == "keep"
    assert decide(WORSE, {}, ["size"], rules(margin=0.01), LEVEL).verdict == "keep"


def test_superiority_is_claimed_only_where_the_margin_is_held():
    """Closed testing: nothing is promoted as better by a test that the wider claim does not pass."""
    rng = np.random.default_rng(0)
    for gained in rng.integers(0, 41, 200):
        found = decide(Discordance(400, int(gained), 40 - int(gained)), {}, [], rules(), 0.05)
        if found.way == "superior":
            assert found.p_margin <= 0.05


def test_limits_are_limits():
    costs = Contender(150.0, np.full(50, 20.0))
    assert over_limits(costs, rules(max_latency_ms=20.0, max_size_mb=150.0)) == []
    assert over_limits(costs, rules(max_latency_ms=19.0, max_size_mb=100.0)) == ["latency", "size"]
    assert over_limits(costs, rules(max_latency_ms=None, max_size_mb=None)) == []


def test_latency_has_to_fall_by_its_share_for_sure_and_size_just_has_to():
    rng = np.random.default_rng(0)
    before = Contender(100.0, rng.uniform(8, 12, 100))
    faster = Contender(91.0, before.latency_ms * rng.uniform(0.6, 0.9, 100))
    fallen = falls(faster, before, 0.05)
    assert fallen["size"] == pytest.approx(0.09)
    assert 0.2 < fallen["latency"] < 0.25
    assert improved_by(fallen, rules(improves={"latency": 0.1, "size": 0.1})) == ["latency"]
    assert improved_by(fallen, rules(improves={"latency": 0.3, "size": 0.05})) == ["size"]
    assert improved_by(falls(before, before, 0.05), rules(improves={"latency": 0.0, "size": 0.0})) == []
    # Noise alone does not pass for a gain.
    noisy = Contender(100.0, before.latency_ms * rng.lognormal(0, 1, 100))
    assert falls(noisy, before, 0.05)["latency"] < 0.1


def test_the_limit_of_a_median_is_as_seldom_wrong_as_it_says():
    rng = np.random.default_rng(0)
    below = np.mean([median_at_most(rng.exponential(size=80), 0.05) < np.log(2) for _ in range(2000)])
    assert 0.02 < below <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert median_at_most(np.ones(3), 0.05) == np.inf


@pytest.mark.parametrize(("difference", "improved"), [(0.0, []), (-RULES.margin, ["size"])])
def test_over_all_uses_of_a_test_set_wrong_promotions_are_as_seldom_as_alpha_says(difference, improved):
    num, each, wrong = 50, levels(400), 0
    assert sum(each) == pytest.approx(RULES.alpha)
    for seed in range(num):
        world = World.draw(400, seed)
        rivals = zip(world.challengers(len(each), difference, 0.1), each, strict=True)
        wrong += any(judged(world, right, level, improved).verdict == "promote" for right, level in rivals)
    assert wrong / num <= limit(RULES.alpha, num)


def test_at_the_whole_alpha_each_time_the_same_worlds_go_wrong_often():
    """What the spending is for."""
    wrong = 0
    for seed in range(25):
        world = World.draw(400, seed)
        wrong += any(judged(world, right, 0.05, []).verdict == "promote" for right in world.challengers(20, 0.0, 0.1))
    assert wrong / 25 > limit(RULES.alpha, 25)
