"""Prefect's server: the one of this repository, that `mill up` starts, or the one that PREFECT_API_URL names."""

import json
import os
import socket
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.params import Flows
from tasks.errors import MillError

# One that is not there refuses at once; one that is busy takes its time.
_HEALTH_SECONDS = 10
_HOST = "127.0.0.1"
_DAY_SECONDS = 24 * 60 * 60

# What a person's own environment says about other servers than the one of this repository.
_OF_OTHERS = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_UI_URL")


class ServerError(MillError):
    """Prefect's server is not there, or cannot be."""


@dataclass(frozen=True)
class Server:
    """A Prefect server, and the environment in which its clients find it. `command` starts it, where it is ours."""

    api: str
    environment: Mapping[str, str]
    command: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return self.environment.get("PREFECT_UI_URL") or self.api.removesuffix("/").removesuffix("/api")


def choose(home: Path, flows: Flows) -> Server:
    """The server that PREFECT_API_URL names; without it one of this repository's own, which is still to be started.

    Raises ServerError where the named one does not answer, or where something else has the port.
    """
    named = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if named:
        if not is_there(named):
            raise ServerError(
                f"PREFECT_API_URL is {named}, and nothing that is a Prefect server answers there. Start that one, or "
                "leave the variable empty, and this repository has a server of its own: PREFECT_API_URL= mill up"
            )
        return Server(named, {**os.environ, "PREFECT_API_URL": named})
    check_port(flows.server.port, "flows.server.port")
    return own(home, flows)


def own(home: Path, flows: Flows) -> Server:
    """The server of this repository. Its state, and that of its clients, is in `.mill/prefect`: no profile is read."""
    page = f"http://{_HOST}:{flows.server.port}"
    prefect_home = home / ".mill" / "prefect"
    # The key to the block that holds a secret URL is in there too.
    prefect_home.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS} | {
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_API_URL": f"{page}/api",
        "PREFECT_UI_URL": page,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(flows.server.keep_runs_days * _DAY_SECONDS),
        # In memory, as is the default, a server that is started again would not know that a run holds its place, and
        # the run would be ended.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(flows.server.port))
    return Server(f"{page}/api", environment, command)


def answers(api: str) -> bool:
    """Whether a Prefect API is there and well."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=_HEALTH_SECONDS) as answer:  # noqa: S310
            return bool(json.load(answer) is True)
    except (OSError, ValueError):
        return False


def is_there(api: str) -> bool:
    """Whether a Prefect API is there, also one that wants to know who asks."""
    try:
        return answers(api) or _wants_a_key(api)
    except ValueError:
        return False


def _wants_a_key(api: str) -> bool:
    try:
        urllib.request.urlopen(f"{api}/health", timeout=_HEALTH_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False
    return False


def elsewhere() -> str | None:
    """What the person's own Prefect profile says about another server, in a sentence; None where it says nothing."""
    folder = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    file = Path(os.environ.get("PREFECT_PROFILES_PATH") or folder / "profiles.toml")
    try:
        profiles = tomllib.loads(file.read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE") or str(profiles["active"])
        url = profiles["profiles"][name]["PREFECT_API_URL"]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return None
    return f"Your Prefect profile `{name}` names {url}, which is not used. To use it: PREFECT_API_URL={url} mill up"


def url_of(host: str, port: int) -> str:
    """Where a client on this machine finds what listens there, also where it listens on all addresses."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return f"http://{bracketed(loopback.get(host, host))}:{port}"


def bracketed(host: str) -> str:
    """A host as URLs have it: an address of IPv6 stands in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def check_port(port: int, key: str, host: str = _HOST, what: str = "Prefect's server") -> None:
    """Raise ServerError, with who has it where that can be seen, where something listens on the port.

    `key` is where params.yaml has the port, `what` would listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except OSError as error:
            reason = error.strerror
    api = f"http://{_HOST}:{port}/api"
    use_it = f" It is a Prefect server: to use it, PREFECT_API_URL={api} mill up" if answers(api) else ""
    raise ServerError(
        f"{what} cannot listen on {host}:{port} ({key}): {reason}. {who_listens(port)} "
        f"Stop that, or give {key} another number.{use_it}"
    )


def who_listens(port: int) -> str:
    """The process that listens on a port, in a sentence."""
    import psutil

    try:
        found = {one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port}
        processes = [psutil.Process(number) for number in sorted(filter(None, found))]
        told = [f"{one.pid} ({' '.join(one.cmdline())[:200]}, in {one.cwd()})" for one in processes]
    except psutil.Error:
        told = []
    return f"There is process {', '.join(told)}." if told else "It is a process of somebody else's."
