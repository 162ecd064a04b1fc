"""Work that Prefect shows as a flow run of its own: a retrain, a look of the monitor.

It is the work that counts. It is done also where Prefect cannot show it, and what it gave is given back also where
Prefect's server has gone away in the middle.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.errors import MillError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

T = TypeVar("T")


class Cancelled(MillError):
    """Somebody has cancelled the work in Prefect."""


def is_in_flow_run() -> bool:
    """Whether there is a flow run already, as where a deployment has started this. Prefect is not imported for it."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def as_flow(
    name: str, model: str, api: str | None, work: Callable[[str | None], T], told: Callable[[T], "State[Any]"]
) -> T:
    """What `work` gives, done in the flow run that there is already, else in one of its own on the server at `api`.

    Without `api` Prefect starts a temporary server. `work` gets the server's URL, and `told` makes of what it gave the
    flow run's last state. Cancelling that flow run in Prefect interrupts the work as Ctrl-C does, and raises Cancelled.
    """
    if is_in_flow_run():
        from prefect.settings import PREFECT_API_URL

        return work(PREFECT_API_URL.value())
    came: Future[T] = Future()
    try:
        _show(name, f"{name}-{model}", api, work, told, came)
    except BaseException as error:
        if not came.done() and not isinstance(error, Exception):
            raise
        if not came.done():
            print(f"Prefect cannot show this: {error!r}. It is done all the same.", file=sys.stderr)
            return work(None)
        if came.exception() is not error:
            print(f"Prefect does not show how this ended: {error!r}. Nothing else is lost.", file=sys.stderr)
    if not came.done():
        raise _cancelled(f"{name}-{model}")
    return came.result()


def _show(
    name: str,
    run_name: str,
    api: str | None,
    work: Callable[[str | None], T],
    told: Callable[[T], "State[Any]"],
    came: "Future[T]",
) -> None:
    """Do the work in a flow run, and keep in `came` what comes of it. Raises whatever Prefect does."""
    from flows.prefect_api import on_server
    from flows.prefect_link import Link

    link = Link()
    with on_server(api) as url, link.open(url, on_terminal=True):
        from prefect import flow, states

        def run() -> "State[Any]":
            try:
                with _cancellable(run_name) as cancel, link.watched(cancel, print, "The work goes on."):
                    came.set_result(work(url))
            except BaseException as error:
                if not came.done():
                    came.set_exception(error)
            stopped = came.exception()
            if isinstance(stopped, Cancelled):
                return states.Cancelled(message=str(stopped))
            if isinstance(stopped, MillError):
                return states.Failed(message=str(stopped))
            return told(came.result())

        flow(name=name, flow_run_name=run_name, log_prints=True, persist_result=False)(run)(return_state=True)


@contextlib.contextmanager
def _cancellable(run_name: str) -> Iterator[Callable[[str], None]]:
    """What interrupts the work within, which ends in Cancelled then. Only the main thread hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    ordered, main = threading.Event(), threading.get_ident()

    def cancel(_: str) -> None:
        ordered.set()
        signal.pthread_kill(main, signal.SIGINT)  # to this very thread, so that what it waits for is interrupted too

    # Also where it is ignored, as in a shell's background.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield cancel
    except KeyboardInterrupt:
        if not ordered.is_set():
            raise
        raise _cancelled(run_name) from None
    finally:
        signal.signal(signal.SIGINT, former)


def _cancelled(run_name: str) -> Cancelled:
    return Cancelled(f"{run_name} was cancelled in Prefect. What it had begun is finished or repeated by the next run.")
