"""`mill serve`: the model server, in the foreground."""

import asyncio
import errno
import socket
import sys
from pathlib import Path

from flows.params import load_flows
from tasks.errors import MillError
from tasks.serving.settings import Serving


class PortTaken(MillError):
    """Something else listens where the server should."""


def serve(root: Path, *, port: int | None = None) -> None:
    """Answer for every model in use until Ctrl-C or SIGTERM; what was taken by then is answered."""
    import uvicorn

    from tasks.serving.app import create_app
    from tasks.serving.live import Live
    from tasks.serving.logs import log_json

    serving = load_flows(root / "params.yaml").serve
    if port is not None:
        serving = serving.model_copy(update={"port": port})
    listener = _listen(serving)
    log_json()
    host, bound = listener.getsockname()[:2]
    print(f"Serving on http://{host}:{bound} (docs below /docs). Ctrl-C stops it.", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        create_app(Live(root, serving), serving),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    asyncio.run(uvicorn.Server(config).serve([listener]))


def _listen(serving: Serving) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((serving.host, serving.port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Port {serving.port} of {serving.host} is taken by another process. Stop it, or set "
                "flows.serve.port in params.yaml (`mill serve --port` for once)."
            ) from None
        raise PortTaken(f"Cannot listen on {serving.host}:{serving.port} (flows.serve): {error.strerror}.") from None
    return listener
