"""What the running server is asked for by the monitor: flows/monitor_findings.py, against real sockets."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.monitor_findings import Serving, serving_of
from flows.server import url_of
from tasks.shards import read_json, write_json
from tests.registered import write_params

FIGURES = """# HELP modelmill_requests_total Requests.
# TYPE modelmill_requests_total counter
modelmill_requests_total{model="films",outcome="answered"} 3.0
modelmill_requests_total{model="others",outcome="answered"} 5.0
# HELP modelmill_version 1 for the version in use
# TYPE modelmill_version gauge
modelmill_version{model="films",version="sha-1"} 1.0
modelmill_version{model="others",version="sha-2"} 1.0
# HELP modelmill_version_failed 1 for what was to take over and could not
# TYPE modelmill_version_failed gauge
modelmill_version_failed{model="others"} 1.0
"""


class _Server(HTTPServer):
    content = ""

    def __init__(self, host: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.content.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Serves a page at a host of params.yaml, whose root it gives."""
    with_servers: list[_Server] = []

    def serve(host: str, content: str) -> Path:
        server = _Server(host)
        with_servers.append(server)
        server.content = content
        threading.Thread(target=server.serve_forever, daemon=True).start()
        write_params(tmp_path)
        params = read_json(tmp_path / "params.yaml")
        params["flows"]["serve"] |= {"host": host, "port": server.server_address[1]}
        write_json(tmp_path / "params.yaml", params)
        return tmp_path

    yield serve
    for server in with_servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_the_server_is_found_wherever_it_listens(serving: Callable[[str, str], Path], host: str) -> None:
    root = serving(host, FIGURES)
    assert serving_of(root, "films") == Serving({"answered": 3.0}, "sha-1", failed=False)
    assert serving_of(root, "others") == Serving({"answered": 5.0}, "sha-2", failed=True)
    assert serving_of(root, "nobody") == Serving({}, None, failed=False)


def test_somebody_elses_page_tells_nothing(serving: Callable[[str, str], Path]) -> None:
    assert serving_of(serving("127.0.0.1", "<html>\n<p>a page of another program</p>\n</html>"), "films") is None


def test_a_host_that_is_none_and_a_server_that_is_not_there_tell_nothing(tmp_path: Path) -> None:
    write_params(tmp_path)
    params = read_json(tmp_path / "params.yaml")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        free = taken.getsockname()[1]
    for host in ("127.0.0.1", "::x", "a b"):
        params["flows"]["serve"] |= {"host": host, "port": free}
        write_json(tmp_path / "params.yaml", params)
        assert serving_of(tmp_path, "films") is None


def test_an_address_is_what_a_browser_on_this_machine_can_open() -> None:
    hosts = ("models.example.org", "0.0.0.0", "::", "fd00::7")
    assert [url_of(host, 8000) for host in hosts] == [
        "http://models.example.org:8000",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "http://[fd00::7]:8000",
    ]
