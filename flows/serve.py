"""`mill serve`: the model server, in the foreground."""

import errno
import logging
import os
import socket
import sys
from pathlib import Path

from flows.params import Flows, load_flows
from flows.server import bracketed
from tasks.errors import MillError
from tasks.serving.keys import BadKey, Keys, is_loopback, keys_file
from tasks.serving.settings import Keeping, Serving

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that wait to be taken; the kernel may hold fewer."""


class PortTaken(MillError):
    """Something else listens where the server should."""


def serve(root: Path, *, port: int | None = None) -> None:
    """Answer for every model in use until Ctrl-C or SIGTERM; what was taken by then is answered."""
    # A lane has a core to itself, and what it works on is small: threads of these libraries would only change places.
    os.environ.update(POLARS_MAX_THREADS="1", TOKENIZERS_PARALLELISM="false")

    import uvicorn

    from flows.portal import add_portal
    from tasks.journal import open_journal
    from tasks.serving.app import create_app
    from tasks.serving.limits import protocol
    from tasks.serving.live import Live
    from tasks.serving.logs import log_json

    flows = load_flows(root / "params.yaml")
    serving = flows.serve
    if port is not None:
        serving = serving.model_copy(update={"port": port})
    if not is_loopback(serving.host) and not keys_file(root).exists():
        raise BadKey(
            f"flows.serve.host is {serving.host}, which others can reach, and nobody has a key. `mill key add CLIENT` "
            "makes one; 127.0.0.1 needs none."
        )
    listener = _listen(serving)
    journal = open_journal(journal_url(root, flows.journal))
    log_json()
    host, bound = listener.getsockname()[:2]
    said = f"Serving on http://{bracketed(host)}:{bound}: a page for people, and /docs for programs. Ctrl-C stops it."
    print(said, file=sys.stderr, flush=True)
    _follow_challengers(root, flows)
    app = create_app(
        Live(root, serving),
        serving,
        journal,
        Keys(root, is_open=is_loopback(serving.host)),
        keep_days=flows.journal.keep_days,
    )
    add_portal(app, root, app.state.service)
    config = uvicorn.Config(
        app,
        http=protocol(serving.body_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run([listener])  # on uvloop


def _follow_challengers(root: Path, flows: Flows) -> None:
    """Let the shadow be what params.yaml asks for now, and not what it asked for when a retrain last decided."""
    from flows.shadow import follow_challenger, shadow_file

    if not (flows.serve.shadow or shadow_file(root).exists()):
        return
    for model in flows.models:
        if told := follow_challenger(root, model):
            log.info(told)


def journal_url(root: Path, keeping: Keeping) -> str:
    """Where the journal is. Raises SourceError where its variable is not set."""
    if keeping.url is None:
        return f"sqlite:///{root / '.mill' / 'journal.sqlite'}"
    from tasks.sources._credentials import from_environment

    return from_environment(keeping.url).url


def _listen(serving: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    # With its protocol named: for such sockets alone does asyncio's own loop turn Nagle's algorithm off, by which each
    # answer waits 40 ms for the acknowledgement of its headers. uvloop does so for all, where it is installed.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((serving.host, serving.port))
        # At once: who reads that it serves can connect, and waits for an answer until the models are loaded.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Port {serving.port} of {serving.host} is taken by another process. Stop it, or set "
                "flows.serve.port in params.yaml (`mill serve --port` for once)."
            ) from None
        raise PortTaken(f"Cannot listen on {serving.host}:{serving.port} (flows.serve): {error.strerror}.") from None
    return listener
