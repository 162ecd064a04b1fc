"""The section `flows` of params.yaml: what decides when lines run and what is promoted, and never what a line makes.

It stands apart from `models`, since whatever stands there makes stages stale.
"""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, field_validator, model_validator

from tasks.errors import ParamsError, did_you_mean
from tasks.gate import Gate
from tasks.mistakes import mistakes_of
from tasks.params import Count, NotNegative, Positive, Section, Text, load
from tasks.serving.settings import Keeping, Serving
from tasks.watching import Watching

# As much of a cron line as shows the longest pause in it: a weekend, a season, two leap years.
_FROM, _A_WEEK_LATER, _UNTIL = (datetime(*day, tzinfo=UTC) for day in ((2000, 1, 1), (2000, 1, 11), (2009, 1, 1)))
_SEASONS_RUNS = 400


class LineParams(Section):
    """How the stale stages of the DVC graph are run."""

    jobs: Count  # stages at the same time
    lock_wait_minutes: NotNegative  # how long somebody's own dvc command may hold DVC's lock
    collect_retries: Annotated[int, Field(ge=0)]  # only collect meets what may pass by itself
    collect_retry_seconds: NotNegative


class ServerParams(Section):
    """Prefect's server, as `mill up` starts it."""

    port: Annotated[int, Field(ge=1, le=65535)]
    keep_runs_days: Count
    work_pool: Text | None  # of Prefect, whose workers run the flows; null runs them here


class EvidentlyParams(Section):
    """Evidently's own pages of the monitor's history, as `mill up` starts them."""

    port: Annotated[int, Field(ge=1, le=65535)]


class StoreParams(Section):
    """What `mill gc` keeps besides what a tag in use needs."""

    keep_versions: Count
    keep_refused_days: Count


class Schedule(Section):
    """When a flow runs by itself."""

    cron: Text
    timezone: Text
    silence_hours: Positive  # after so long without a run that should have been, somebody is told

    @field_validator("cron")
    @classmethod
    def _cron_is_one(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError

        # Prefect knows neither a sixth field for seconds in this place nor the last Friday or weekday of a month.
        known = len(value.split()) == 5 and not re.search(r"\dL|LW", value, re.IGNORECASE)
        try:
            next(CronSim(value if known else "", _FROM))
        except (CronSimError, StopIteration):
            raise ValueError(
                'expected five fields, minute hour day month weekday: "0 3 * * *" is every night at three'
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("expected a name of the IANA time zones: UTC, Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _silence_is_longer_than_a_pause(self) -> Self:
        pause = self.longest_pause() / timedelta(hours=1)
        if self.silence_hours <= pause:
            raise ValueError(
                f"silence_hours is {self.silence_hours:g}, and cron {self.cron!r} pauses for {pause:g} hours by "
                "itself. Give silence_hours more than that, and the time that a run takes"
            )
        return self

    def longest_pause(self) -> timedelta:
        """Between two runs, in winter or summer."""
        from cronsim import CronSim

        runs = takewhile(
            lambda found: found[1] < (_UNTIL if found[0] < _SEASONS_RUNS else _A_WEEK_LATER),
            enumerate(CronSim(self.cron, _FROM)),
        )
        return max((after - before for (_, before), (_, after) in pairwise(runs)), default=timedelta.max)

    def next_run(self, after: datetime) -> datetime:
        """When it runs next, in its own time zone."""
        from cronsim import CronSim

        return next(CronSim(self.cron, after.astimezone(ZoneInfo(self.timezone))))


class Retrain(Schedule):
    """The scheduled retraining, and how often drift may ask for one."""

    cool_down_hours: NotNegative  # after a retrain, how long drift asks in vain
    max_a_week: Count  # how many of a week's retrains drift may have asked for


class Monitor(Watching, Schedule):
    """The scheduled look at what a model is asked and answers."""


class ModelFlows(Section):
    """The flows of one model."""

    gate: Gate
    retrain: Retrain | None
    monitor: Monitor | None = None  # without one it is looked at by nobody


class Flows(Section):
    """The section `flows`."""

    line: LineParams
    server: ServerParams
    evidently: EvidentlyParams | None  # null starts none
    serve: Serving
    journal: Keeping
    store: StoreParams
    notify: Text | None  # an Apprise URL, or `$NAME` of the environment: slack://…, mailto://…
    models: dict[str, ModelFlows]

    @model_validator(mode="after")
    def _secret_stays_outside(self) -> Self:
        if self.notify is not None and not self.notify.startswith("$"):
            raise ValueError(
                "notify takes the name of an environment variable, as in $MILL_NOTIFY: the URL is a secret"
            )
        return self


def load_flows(path: Path = Path("params.yaml")) -> Flows:
    """Read and check the section, and the rest of the file with it. Raises ParamsError with every mistake."""
    params = load(path)
    try:
        flows = Flows.model_validate(params.flows)
    except ValidationError as error:
        raise ParamsError("\n".join(mistakes_of(error, path, Flows, below=("flows",)))) from None
    unknown = sorted(set(flows.models) - set(params.models))
    if unknown:
        raise ParamsError(
            f"{path}: flows.models.{unknown[0]} is no model.{did_you_mean(unknown[0], params.models)} "
            f"Known: {', '.join(sorted(params.models))}."
        )
    return flows


def flows_of(model: str, path: Path = Path("params.yaml")) -> ModelFlows:
    """The flows of one model. Raises ParamsError where it has none."""
    models = load_flows(path).models
    if model not in models:
        raise ParamsError(
            f"{path}: {model} has no entry below flows.models, so nothing says how it is gated and when it retrains."
        )
    return models[model]
