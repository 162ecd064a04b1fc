"""What tests of deployments and automations share: where messages arrive, and which runs there are."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from uuid import UUID

from flows.automations import Deployed


class Inbox:
    """A place that messages are sent to, as Apprise sends JSON."""

    def __init__(self) -> None:
        messages: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.messages, self.server = messages, HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"json://ann:sesame@127.0.0.1:{self.server.server_address[1]}/"


def applied(deployment: Any) -> UUID:
    return UUID(str(deployment.apply()))


def runs_of(client: Any, one: Deployed) -> list[Any]:
    """Those that the schedule did not plan."""
    found = [run for run in client.read_flow_runs() if run.deployment_id == one.id]
    return [run for run in found if not run.auto_scheduled]
