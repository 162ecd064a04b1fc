"""How often drift may ask for a retrain: not again soon after the last one, and only so many times a week.

What was learned stands in Git as decisions, whoever asked for it; a run that failed leaves none, and has cost as much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flows.params import Retrain

DRIFT = "drift"

_WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Learned:
    """A retrain that has run its line: when, and whether drift had asked for it."""

    at: datetime
    by_drift: bool


def learned(decisions: Iterable[Mapping[str, Any]], failed: Iterable[Learned] = ()) -> list[Learned]:
    """What Git says was decided on, and the runs that failed before they decided; the oldest first."""
    decided = (
        Learned(datetime.fromisoformat(made["at"]), str(made.get("why", "")).startswith(DRIFT)) for made in decisions
    )
    return sorted((*decided, *failed), key=lambda past: past.at)


def held_back(past: Iterable[Learned], schedule: Retrain, now: datetime) -> tuple[str, str] | None:
    """The state in which a run that drift asks for ends at once, and why; None where it may learn.

    All times are aware; `past` is in their order.
    """
    past = list(past)
    cool_down = timedelta(hours=schedule.cool_down_hours)
    recent = [one for one in past if one.at + cool_down > now]
    if recent:
        last = recent[-1].at
        return "CoolDown", (
            f"Drift asks in vain until {last + cool_down:%Y-%m-%d %H:%M} UTC: the last retrain was at "
            f"{last:%Y-%m-%d %H:%M}, less than cool_down_hours ({schedule.cool_down_hours:g}) ago."
        )
    week = [one for one in past if one.by_drift and one.at + _WEEK > now]
    if len(week) >= schedule.max_a_week:
        until = week[-schedule.max_a_week].at + _WEEK
        return "OverBudget", (
            f"Drift has had its {schedule.max_a_week} retrains of this week (max_a_week), and may have another "
            f"from {until:%Y-%m-%d %H:%M} UTC on. The schedule and `mill retrain` are as free as before."
        )
    return None
