"""What a caller may cost before anything is computed, and what is said to whoever asks for too much."""

import contextlib
import shutil
import socket
from collections.abc import Iterator

import pytest

from tasks.release import read_release
from tasks.serving.batcher import Busy
from tests.conftest import Line
from tests.model_server import Running, running, use
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("limits")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    with running(root, body_seconds=0.5) as server:
        yield server


@contextlib.contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def said(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def is_well(server: Running) -> bool:
    return server.predict({"text": "a film"}).status_code == 200


def test_headers_that_never_end_are_sent_away(server: Running) -> None:
    with connected(server) as slow:
        slow.sendall(b"POST /models/tiny/predict HTTP/1.1\r\nHost: x\r\nX-Sl")
        answer = said(slow)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'{"error":"The request did not arrive within 0.5 s."}' in answer
    assert is_well(server)


def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(server: Running) -> None:
    with connected(server) as silent:
        assert said(silent) == b""


def test_a_connection_that_is_kept_alive_may_ask_again_after_the_limit(server: Running) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(server) as kept:
        for _ in range(2):
            kept.sendall(request)
            assert kept.recv(1000).startswith(b"HTTP/1.1 200")
            kept.settimeout(0.8)
            with contextlib.suppress(TimeoutError):
                assert kept.recv(1000) == b"", "it was closed"
            kept.settimeout(10)


def test_headers_without_end_are_refused_by_their_size(server: Running) -> None:
    with connected(server) as endless, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        endless.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        for _ in range(200):
            endless.sendall(b"x" * 10_000)
        answer = said(endless)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"The headers are larger than" in answer
    assert is_well(server)


def test_a_body_that_does_not_say_its_size_is_refused_once_it_is_too_large(server: Running) -> None:
    with connected(server) as chunked, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        chunked.sendall(b"POST /models/tiny/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            chunked.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert b" 413 " in said(chunked)
    assert is_well(server)


def test_all_bodies_together_have_a_limit(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        head = b"POST /models/tiny/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
        many = []
        for _ in range(40):
            many.append(stack.enter_context(connected(server)))
            many[-1].sendall(head)  # at once: who says nothing is hung up on
        answers = [said(connection) for connection in many]
    statuses = {answer.split(b" ")[1] for answer in answers}
    assert statuses == {b"408", b"429"}
    assert all(b"retry-after: 1" in answer.lower() for answer in answers if b" 429 " in answer[:20])
    assert is_well(server)


CHUNKED = b"POST /models/tiny/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def test_small_bodies_that_do_not_say_their_size_hold_no_more_than_that(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connected(server)) for _ in range(40)]
        for connection in many:
            connection.sendall(CHUNKED + chunk(b'{"text": '))
        for connection in many:
            connection.sendall(chunk(b'"a film"}') + b"0\r\n\r\n")
        answers = [said(connection) for connection in many]
    assert {answer.split(b" ")[1] for answer in answers} == {b"200"}


def test_large_bodies_that_do_not_say_their_size_have_the_same_limit_together(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connected(server)) for _ in range(40)]
        for connection in many:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # sent away meanwhile
                connection.sendall(CHUNKED + chunk(b"x" * 99_000))
        answers = [said(connection) for connection in many]
    statuses = [answer.split(b" ")[1] for answer in answers if answer]
    assert set(statuses) == {b"408", b"429"}
    assert statuses.count(b"408") <= 33
    assert is_well(server)


def test_where_there_is_no_room_whoever_comes_is_sent_away_before_it_is_looked_at_what_was_sent(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise Busy(3)

    with monkeypatch.context() as for_now:
        for_now.setattr(server.live.get("tiny").batcher, "check_room", full)
        for path in ("/models/tiny/predict", "/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
            answer = server.client.post(path, content=b"no JSON")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
            assert answer.json() == {"error": "More is asked than can be answered now. Ask again in 3 s."}
            assert "connection" not in answer.headers, "to connect anew would cost more than to be sent away"
        assert server.client.post("/models/tinny/predict", json={}).status_code == 404
        assert server.client.post("/models/tiny/feedback", json={}).status_code == 422
        assert server.client.get("/models/tiny").status_code == 200
    counted = server.client.get("/metrics").text
    assert 'modelmill_requests_total{model="tiny",outcome="sent_away"} 3.0' in counted
    assert is_well(server)


def test_what_a_caller_wrote_is_neither_compared_nor_said_at_full_length(server: Running) -> None:
    import time

    from tasks.errors import did_you_mean

    strange = "text" * 20_000
    for path, content in (
        ("/models/tiny/predict", {strange: "a"}),
        ("/models/tiny/feedback", {"id": "a", "label": "b", strange: "c"}),
        ("/v2/models/tiny/infer", {"inputs": [{"name": strange}]}),
        (
            "/v2/models/tiny/infer",
            {
                "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
                "outputs": [{"name": strange}],
            },
        ),
        (f"/models/{strange[:5000]}/predict", {"text": "a"}),
    ):
        answer = server.client.post(path, json=content)
        assert answer.status_code in (404, 422)
        assert len(answer.content) < 500, path
        assert "000 characters)" in answer.json()["error"]
    started = time.process_time()
    assert did_you_mean("x" * 4_000_000, ["text"]) == ""
    assert did_you_mean("nothing like them", (str(number) * 8 for number in range(10**9))) == ""
    assert time.process_time() - started < 0.3


def test_what_is_no_http_is_refused(server: Running) -> None:
    with connected(server) as strange:
        strange.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert said(strange).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/nothing", 404, "There is nothing at this address. /docs lists what there is."),
        ("DELETE", "/models/tiny", 405, "DELETE is not what this address takes. /docs says what is."),
        ("GET", "/models/tiny/predict", 405, "GET is not what this address takes. /docs says what is."),
    ],
)
def test_an_address_that_is_not_there_is_answered_with_a_sentence(
    server: Running, method: str, path: str, status: int, sentence: str
) -> None:
    answer = server.client.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": sentence})


def test_a_defect_is_a_sentence_too_and_says_nothing_of_the_input(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    from tasks.serving.logs import JsonFormatter

    def fail(*_: object) -> None:
        raise ValueError("cannot read 'my secret diary'")

    monkeypatch.setattr("tasks.serving.service.Service._compute", fail)
    with caplog.at_level(logging.INFO):
        answer = server.predict({"text": "my secret diary"})
        wait_until(lambda: any(record.name == "tasks.serving.logs" for record in caplog.records))  # after the answer
    assert answer.status_code == 500
    assert answer.headers["connection"] == "close"
    assert answer.json() == {"error": "The server failed at this request. Its log says where."}
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert any('"ValueError"' in line and "service.py" in line for line in lines)
    assert any('"status": 500' in line and '"route": "/models/{name}/predict"' in line for line in lines)
    assert not any("diary" in line for line in lines)


def test_a_request_leaves_a_line_that_says_all_but_what_was_asked(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    import json
    import logging

    from tasks.serving.logs import JsonFormatter

    with caplog.at_level(logging.INFO, logger="tasks.serving.logs"):
        server.client.post("/models/tiny/predict?note=private", json=[{"text": "my secret diary"}, {"text": " "}])
        server.client.get("/private/notes")
        server.client.post("/models/private notes/predict", json={"text": "a film"})
        wait_until(lambda: len(caplog.records) == 3)  # a line is written after its answer has been sent
    predicted, unknown, nobodys = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (predicted["method"], predicted["route"]) == ("POST", "/models/{name}/predict")
    assert (predicted["model"], predicted["status"], predicted["client"]) == ("tiny", 200, None)
    assert (predicted["rows"], predicted["answered"]) == (2, 1)
    assert predicted["version"].startswith("sha-")
    assert predicted["ms"] > 0
    assert (unknown["route"], unknown["status"]) == (None, 404)
    assert "diary" not in str(predicted)
    assert (nobodys["model"], nobodys["status"]) == (None, 404)
    assert "private" not in f"{predicted}{unknown}{nobodys}"
