"""How the server behaves; `flows.serve` of params.yaml."""

from typing import Annotated

from pydantic import Field

from tasks.params import Count, NotNegative, Positive, Section, Share, Text


class Serving(Section):
    """Limits first: whatever a caller sends, the server's memory and its latency stay within them."""

    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]  # 0 takes a free one
    threads: Count | None  # of each model; null takes the cores that this process may use
    batch_rows: Count  # computed at once
    batch_wait_ms: NotNegative  # how long the first of a batch waits for others
    queue_rows: Count  # waiting for a lane, or for the journal; whoever comes then is sent away with 429
    queue_seconds: Positive  # the same, by the time that what is waiting will take
    max_rows: Count  # in one request
    max_request_mb: Positive
    body_seconds: Positive  # for a caller to send the request
    journal_seconds: Positive  # for the journal to write an answer down; whoever waits for it is then told 503
    swap_seconds: Positive  # for a version to be loaded and proved before it takes over
    shadow: Share  # of the requests that the newest challenger gets a copy of; its answers go into the journal alone


class Keeping(Section):
    """The journal; `flows.journal` of params.yaml."""

    url: Text | None  # SQLAlchemy's, as `$NAME` of the environment; null keeps .mill/journal.sqlite
    keep_days: Count
