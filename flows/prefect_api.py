"""Which Prefect server a flow runs on, and what is said where it cannot be reached."""

import contextlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.child import end_with_this_process
from tasks.errors import MillError

_ANSWER_SECONDS = 10
_START_SECONDS = 60  # of Prefect's own temporary server
_RETRIES = 2  # of a request, which take 6 seconds; with Prefect's five the end of a run would wait a minute for them


class ServerError(MillError):
    """There is no Prefect server to run flows on."""


def find_server(root: Path) -> str | None:
    """The URL of the Prefect API to run flows on; None where Prefect has to start a temporary server.

    It is the one that PREFECT_API_URL names, else the one of this repository's `mill up`, else the one of Prefect's
    profile. Raises ServerError where one is named and does not answer.
    """
    named = os.environ.get("PREFECT_API_URL")
    if not named:
        from flows.up import running_api

        if running := running_api(root):
            return running
        named = _in_settings() if _may_be_in_settings() else None
    if not named:
        return None
    if error := silence(named):
        raise ServerError(
            f"Prefect's server at {named} does not answer: {error}. {_origin()} names it. Start that server, or do "
            "without it: `prefect config unset PREFECT_API_URL`, or unset it in the environment. "
            "`dvc repro` runs the line without Prefect."
        )
    return named


@contextlib.contextmanager
def on_server(api: str | None) -> Iterator[str]:
    """Settings under which Prefect's flows run on that server, without one on a temporary server; its API's URL."""
    # Prefect reads it when it is imported, and hands it to the server that it starts.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )

    settings: dict[Any, Any] = {
        PREFECT_CLIENT_MAX_RETRIES: _RETRIES,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: _START_SECONDS,
        **({PREFECT_API_URL: api} if api else {}),
    }
    with temporary_settings(settings):
        yield api or _temporary_server()


def _temporary_server() -> str:
    """Have Prefect start a server that ends with this process, also where this is killed; its API's URL."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    server.start()
    if server.server_process is not None:
        end_with_this_process(server.server_process.pid)
    return server.api_url


def _may_be_in_settings() -> bool:
    """Whether Prefect may have been told of a server elsewhere than in the environment. Importing it takes seconds."""
    if "prefect" in sys.modules or any(os.environ.get(f"PREFECT_{name}") for name in ("PROFILE", "PROFILES_PATH")):
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if (home / "profiles.toml").exists() or Path("prefect.toml").exists():
        return True
    marks = {"pyproject.toml": "[tool.prefect", ".env": "PREFECT_"}
    return any(mark in _text(Path(name)) for name, mark in marks.items())


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _in_settings() -> str | None:
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or None


def silence(api: str) -> str:
    """Why a Prefect API does not answer; empty where it does, if only to say who may ask."""
    try:
        urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=_ANSWER_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403) else f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        # Which authorities are trusted is Prefect's own setting.
        return "" if "CERTIFICATE_VERIFY_FAILED" in str(error) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _origin() -> str:
    if os.environ.get("PREFECT_API_URL"):
        return "The environment variable PREFECT_API_URL"
    from prefect.context import get_settings_context

    return f"Prefect's profile {get_settings_context().profile.name!r} (or prefect.toml, pyproject.toml or .env)"
