"""Which Prefect server a flow runs on, and what is said where it cannot be reached."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import MillError

_ANSWER_SECONDS = 10
_START_SECONDS = 60  # of Prefect's own temporary server
_RETRIES = 2  # of a request, which take 6 seconds; with Prefect's five the end of a run would wait a minute for them


class ServerError(MillError):
    """There is no Prefect server to run flows on."""


@contextlib.contextmanager
def prefect_api(root: Path) -> Iterator[str]:
    """Settings under which Prefect's flows run on the server that they should: its API's URL.

    The one that PREFECT_API_URL or Prefect's profile names; else the one of this repository's `mill up`; else a
    temporary one, which takes seconds to start. Raises ServerError where a server is named and does not answer.
    """
    # Prefect reads it when it is imported, and hands it to the server that it starts.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )

    named = PREFECT_API_URL.value()
    url = named or _of_mill_up(root)
    settings: dict[Any, Any] = {PREFECT_API_URL: url} if url else {}
    settings |= {
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: _START_SECONDS,
        PREFECT_CLIENT_MAX_RETRIES: _RETRIES,
    }
    with temporary_settings(settings):
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            answered = _answered(named)
        yield answered


def _of_mill_up(root: Path) -> str | None:
    from flows.up import running_api

    return running_api(root)


def _answered(named: str | None) -> str:
    """The URL of the API, once it has answered."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(httpx_settings={"timeout": _ANSWER_SECONDS}, sync_client=True) as client:
            error = client.api_healthcheck()
            url = str(client.api_url)
    except RuntimeError as failure:  # the temporary one has not started
        raise ServerError(
            f"Prefect's temporary server did not start: {failure} `mill up` starts a lasting one."
        ) from None
    if error is None:
        return url
    raise ServerError(
        f"Prefect's server at {url} does not answer ({type(error).__name__}: {error}). "
        f"{_origin(named)} names it. Start that server, or do without it: {_way_out(named)} "
        "`dvc repro` runs the line without Prefect."
    )


def _origin(named: str | None) -> str:
    if named is None:
        return "This repository's `mill up`"
    if os.environ.get("PREFECT_API_URL"):
        return "The environment variable PREFECT_API_URL"
    return f"Prefect's profile {_profile()!r} (or a prefect.toml, or pyproject.toml)"


def _way_out(named: str | None) -> str:
    if named is None:
        return "`mill down`."
    return "unset PREFECT_API_URL." if os.environ.get("PREFECT_API_URL") else "prefect config unset PREFECT_API_URL."


def _profile() -> str:
    from prefect.context import get_settings_context

    return str(get_settings_context().profile.name)
