"""How closely a model in use is watched; `flows.models.<model>.monitor` of params.yaml, beside its schedule."""

from typing import Annotated

from pydantic import Field

from tasks.params import Count, Section, Seed, Share


class Watching(Section):
    """When a window of predictions counts as drifted, and what then happens."""

    window: Annotated[int, Field(ge=20)]  # predictions
    false_alarm_rate: Annotated[float, Field(gt=0, le=0.2, allow_inf_nan=False)]  # of one window, all tests together
    smallest_effect: Share  # a shift below it never matters, however sure it is
    persistence: Count  # windows in a row before it is an alarm
    resamples: Annotated[int, Field(ge=1000)]  # pairs of window and reference from which the thresholds come
    seed: Seed
    min_labels: Count  # of predictions of the version in use: from so many on an alarm starts a retrain
    ask_labels: Count  # otherwise so many rows are named that are worth labelling
    keep_pages: Count  # the newest windows whose Evidently page is kept; of a thousand its own store keeps the figures
