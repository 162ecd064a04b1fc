"""How often the gate is wrong, and how often it finds what it says it would: counted in worlds that are known.

The functions are those that decide in earnest, and the numbers of rows and of resamples ones that a small model has.
`pytest -m slow -s` prints the rates.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tasks.gate import decide
from tasks.paired import Evidence
from tests.gate_worlds import RULES, World, by_f1, by_mean, judged, levels, limit, skewed

# A busy machine may take its time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM = 1000
ROWS = 1000
DIFFERING = 0.1
RESAMPLES = 1000

# The bootstrap's worlds are smaller, since it takes time; so is what can be shown in them.
FEW_ROWS = 300
WIDE = RULES.model_copy(update={"margin": 0.1})

# Each way's null: no difference with nothing that improves; and worse by exactly the margin, and smaller.
NULLS = {"superiority": (0.0, []), "margin": (-RULES.margin, ["size"])}


def say(what: str, rate: float, most: str) -> None:
    print(f"\n{what}: {rate:.4f} ({most})", end="")


@pytest.mark.parametrize("null", NULLS)
def test_a_challenger_at_the_null_is_promoted_as_seldom_as_alpha_says(null):
    difference, improved = NULLS[null]
    worlds = (World.draw(ROWS, seed) for seed in range(NUM))
    promoted = [
        judged(world, right, RULES.alpha, improved).verdict == "promote"
        for world in worlds
        for right in world.challengers(1, difference, DIFFERING)
    ]
    say(f"{null}, one use", np.mean(promoted), f"alpha {RULES.alpha}, limit {limit(RULES.alpha, NUM):.4f}")
    assert np.mean(promoted) <= limit(RULES.alpha, NUM)
    assert np.mean(promoted) > 0.2 * RULES.alpha  # and it is no gate that promotes nobody


@pytest.mark.parametrize("null", NULLS)
def test_over_all_uses_of_one_test_set_any_is_promoted_as_seldom_as_alpha_says(null):
    difference, improved = NULLS[null]
    each = levels(ROWS)
    assert len(each) == RULES.uses
    wrong = 0
    for seed in range(NUM):
        world = World.draw(ROWS, seed)
        challengers = world.challengers(len(each), difference, DIFFERING)
        wrong += any(
            judged(world, right, level, improved).verdict == "promote"
            for right, level in zip(challengers, each, strict=True)
        )
    say(f"{null}, {len(each)} uses", wrong / NUM, f"alpha {RULES.alpha}, limit {limit(RULES.alpha, NUM):.4f}")
    assert wrong / NUM <= limit(RULES.alpha, NUM)


def test_a_truly_better_challenger_that_takes_over_makes_no_later_error_likelier():
    """Half of the challengers are better, and become the champion that the next ones, no better, are compared with."""
    each, gain = levels(ROWS), 0.06
    wrong = taken_over = 0
    for seed in range(NUM):
        now = World.draw(ROWS, seed)
        for turn, level in enumerate(each):
            is_better = turn % 2 == 0 and now.accuracy < 0.9
            rival = next(now.challengers(1, gain if is_better else 0.0, DIFFERING, turn))
            if judged(now, rival, level, []).verdict != "promote":
                continue
            if not is_better:
                wrong += 1
                break
            taken_over += 1
            now = replace(now, right=rival, accuracy=now.accuracy + gain)
    assert taken_over > NUM / 2
    say("superiority, 20 uses with true gains between", wrong / NUM, f"limit {limit(RULES.alpha, NUM):.4f}")
    assert wrong / NUM <= limit(RULES.alpha, NUM)


@pytest.mark.parametrize("level", [0.05, 0.0025])
@pytest.mark.parametrize("way", ["superior", "margin"])
def test_the_stated_smallest_difference_is_found_with_the_stated_power(way, level):
    """What one comparison says, held against the next one on other rows."""
    found, stated, rows = 0, [], 1500
    for seed in range(2 * NUM):
        world, other = World.draw(rows, seed), World.draw(rows, 10 * NUM + seed)
        said = judged(world, next(world.challengers(1, 0.0, DIFFERING)), level, ["size"])
        if way == "superior":
            stated.append(said.smallest_gain)
            right = next(other.challengers(1, said.smallest_gain, max(DIFFERING, said.smallest_gain)))
            found += judged(other, right, level, []).way == "superior"
        else:
            stated.append(said.smallest_margin)
            right = next(other.challengers(1, 0.0, DIFFERING))
            found += judged(other, right, level, [], RULES.model_copy(update={"margin": stated[-1]})).p_margin <= level
    say(f"power at the stated {way} {np.mean(stated):.4f}, level {level}", found / (2 * NUM), "0.8")
    assert found / (2 * NUM) >= 0.8


def bootstrapped(metric: str, seed: int, num: int, difference: float) -> Iterator[Evidence]:
    """Of so many challengers on one test set."""
    world, generator = World.draw(FEW_ROWS, seed), np.random.default_rng(seed)
    hardness = generator.gamma(2.0, 0.2, FEW_ROWS)
    for right in world.challengers(num, difference, 0.14):
        if metric == "macro F1":
            yield by_f1(world, right, seed, RESAMPLES)
        else:
            yield by_mean(skewed(hardness, difference, generator), seed, RESAMPLES)


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("metric", ["a skewed mean", "macro F1"])
def test_a_bootstrapped_metric_is_promoted_as_seldom_as_alpha_says(metric, null):
    difference, improved = (-WIDE.margin if null == "margin" else 0.0), NULLS[null][1]
    decisions = [
        decide(evidence, {}, improved, WIDE, WIDE.alpha).verdict
        for seed in range(NUM)
        for evidence in bootstrapped(metric, seed, 1, difference)
    ]
    rate = decisions.count("promote") / NUM
    say(f"{metric}, {null}, one use", rate, f"limit {limit(WIDE.alpha, NUM):.4f}")
    assert 0.2 * WIDE.alpha < rate <= limit(WIDE.alpha, NUM)


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("metric", ["a skewed mean", "macro F1"])
def test_a_bootstrapped_metric_over_all_uses_of_one_test_set(metric, null):
    difference, improved = (-WIDE.margin if null == "margin" else 0.0), NULLS[null][1]
    each = levels(FEW_ROWS)
    wrong = sum(
        any(
            decide(evidence, {}, improved, WIDE, level).verdict == "promote"
            for evidence, level in zip(bootstrapped(metric, seed, len(each), difference), each, strict=True)
        )
        for seed in range(NUM)
    )
    say(f"{metric}, {null}, {len(each)} uses", wrong / NUM, f"limit {limit(WIDE.alpha, NUM):.4f}")
    assert wrong / NUM <= limit(WIDE.alpha, NUM)


@pytest.mark.parametrize("level", [0.05, 0.0025])
@pytest.mark.parametrize("way", ["superior", "margin"])
@pytest.mark.parametrize("metric", ["a skewed mean", "macro F1"])
def test_a_bootstrapped_metric_finds_the_stated_smallest_difference_with_the_stated_power(metric, way, level):
    """As above; what is stated comes from another test set than what is found."""
    found, stated = 0, []
    for seed in range(NUM):
        said = next(bootstrapped(metric, seed, 1, 0.0))
        stated.append(said.smallest_gain(level, WIDE.power))
        gain, bound = (stated[-1], 0.0) if way == "superior" else (0.0, -stated[-1])
        found += next(bootstrapped(metric, 10 * NUM + seed, 1, gain)).p_above(bound) <= level
    say(f"{metric}, power at the stated {way} {np.mean(stated):.4f}, level {level}", found / NUM, "0.8")
    assert found / NUM >= 0.8
