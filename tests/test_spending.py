"""Which rows decide, and what a decision costs: tasks/spending.py."""

from typing import Any

import polars as pl
import pytest

from tasks.spending import TestSet, all_of, among, choose, joined, marks_of, packed, unpacked


def rows(first: int, last: int, prefix: str = "r") -> pl.DataFrame:
    numbers = range(first, last)
    return pl.DataFrame({"id": [f"{prefix}{n}" for n in numbers], "text": [f"What row {n} says" for n in numbers]})


class Ledger:
    """Decides again and again, and keeps what the decisions leave behind."""

    def __init__(self, uses: int = 4) -> None:
        self.uses = uses
        self.used: dict[str, Any] = {}
        self.decisions: list[dict[str, Any]] = []

    def choose(self, asked: pl.DataFrame, most_rows: int | None = None) -> TestSet:
        marks = marks_of(asked, ["text"])
        return choose(marks, self.used, self.decisions, alpha=0.05, uses=self.uses, most_rows=most_rows)

    def decide(self, asked: pl.DataFrame, most_rows: int | None = None) -> TestSet:
        found = self.choose(asked, most_rows)
        self.used = unpacked(packed(joined(self.used, found, marks_of(asked, ["text"]))))
        self.decisions.append({"test_set": found.name, "alpha_spent": found.level})
        return found


def test_every_decision_spends_its_share_until_nothing_is_left():
    ledger = Ledger(uses=4)
    found = [ledger.decide(rows(0, 50)) for _ in range(4)]
    assert {one.name for one in found} == {found[0].name}
    assert [one.level for one in found] == [0.0125] * 4
    assert [one.uses_before for one in found] == [0, 1, 2, 3]
    assert sum(decision["alpha_spent"] for decision in ledger.decisions) == pytest.approx(0.05)
    worn = ledger.choose(rows(0, 50))
    assert (worn.level, worn.chosen.sum(), worn.num_used_up) == (0, 0, 50)
    assert worn.follows == found[0].name


@pytest.mark.parametrize("uses", [1, 3, 7, 20, 49])
def test_shares_add_up_to_as_many_uses_as_params_say_whatever_their_rounding(uses):
    ledger = Ledger(uses)
    while ledger.choose(rows(0, 9)).level:
        ledger.decide(rows(0, 9))
    assert len(ledger.decisions) == uses


def test_a_test_set_that_grows_stays_the_same_one():
    ledger = Ledger()
    first = ledger.decide(rows(0, 50))
    grown = ledger.decide(rows(0, 80))
    assert (grown.name, grown.uses_before, grown.chosen.sum()) == (first.name, 1, 80)
    # What joined is a part of it: alone it is no fresh one.
    assert ledger.choose(rows(50, 80)).name == first.name


def test_rows_that_come_back_under_another_id_have_been_looked_at():
    ledger = Ledger()
    first = ledger.decide(rows(0, 50))
    again = rows(0, 50, prefix="other-").with_columns(pl.col("text").str.to_uppercase() + "  ")
    assert ledger.choose(again).name == first.name


def test_rows_whose_text_has_changed_are_known_by_their_ids():
    ledger = Ledger()
    first = ledger.decide(rows(0, 50))
    assert ledger.choose(rows(0, 50).with_columns(text=pl.lit("tidied in another way"))).name == first.name


def test_once_it_is_worn_out_only_rows_that_nobody_looked_at_decide():
    ledger = Ledger(uses=2)
    first, _ = (ledger.decide(rows(0, 50)) for _ in range(2))
    fresh = ledger.decide(rows(0, 70))
    assert fresh.name != first.name
    assert (fresh.uses_before, fresh.spent_before, fresh.level) == (0, 0, 0.025)
    assert rows(0, 70).filter(fresh.chosen)["id"].to_list() == [f"r{n}" for n in range(50, 70)]
    assert (fresh.follows, fresh.num_used_up) == (first.name, 50)
    # From then on it is the one in use, and the old rows stay out.
    later = ledger.choose(rows(0, 75))
    assert (later.name, later.uses_before, later.chosen.sum(), later.follows) == (fresh.name, 1, 25, None)


def test_what_is_kept_back_is_the_next_test_set():
    ledger = Ledger(uses=2)
    first = [ledger.decide(rows(0, 50), most_rows=30) for _ in range(2)]
    assert [one.chosen.sum() for one in first] == [30, 30]
    assert (first[0].chosen == first[1].chosen).all()
    assert first[0].num_kept_back == 20
    second = ledger.choose(rows(0, 50), most_rows=30)
    assert second.chosen.sum() == 20
    assert not (second.chosen & first[0].chosen).any()


def test_which_rows_are_kept_back_depends_on_the_ids_and_not_on_their_order():
    one = Ledger().choose(rows(0, 50), most_rows=20)
    turned = rows(0, 50).reverse()
    other = Ledger().choose(turned, most_rows=20)
    assert one.name == other.name
    assert set(rows(0, 50).filter(one.chosen)["id"]) == set(turned.filter(other.chosen)["id"])


def test_rows_that_no_decision_has_looked_at_are_a_test_set_of_their_own():
    ledger = Ledger()
    first = ledger.decide(rows(0, 50))
    second = ledger.decide(rows(100, 150))
    assert first.name != second.name
    assert (second.uses_before, second.follows) == (0, None)
    # With rows of both: the latest goes on, and the other's rows are left to the other.
    both = ledger.choose(pl.concat([rows(0, 50), rows(100, 150)]))
    assert (both.name, both.chosen.sum(), both.num_used_up) == (second.name, 50, 50)


def test_a_decision_that_looked_at_nothing_uses_nothing():
    ledger = Ledger()
    ledger.decisions = [{"test_set": None, "alpha_spent": 0.0}, {"test_set": None}]
    found = ledger.choose(rows(0, 5))
    assert (found.uses_before, found.spent_before, found.follows) == (0, 0, None)


def test_where_params_allow_more_uses_what_is_left_is_spent_in_smaller_shares():
    ledger = Ledger(uses=4)
    for _ in range(2):
        ledger.decide(rows(0, 50))
    ledger.uses = 8
    assert ledger.choose(rows(0, 50)).level == 0.05 / 8
    ledger.uses = 1
    assert ledger.choose(rows(0, 50)).level == 0


def test_marks_tell_rows_apart_and_survive_being_written():
    marks = marks_of(rows(0, 200), ["text"])
    assert len(all_of(marks)) == 400
    assert unpacked(packed({"a": all_of(marks)})) == {"a": all_of(marks)}
    assert among(marks, all_of(marks.head(3))).tolist() == [True] * 3 + [False] * 197
    assert not among(marks, frozenset()).any()
