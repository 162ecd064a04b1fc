"""The model server, over HTTP: tasks/serving."""

import errno
import pkgutil
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.release import GOLDEN, Release, read_release
from tasks.serving.served import Served, open_served
from tasks.serving.settings import Serving
from tasks.shards import read_json, write_json
from tests.conftest import Line
from tests.model_server import Running, colder, running, use
from tests.waiting import wait_until

TEXT = {"text": "a warm and moving film"}


@pytest.fixture(scope="module")
def store(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the tiny model's release in its version store, and in use."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    return root


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Running]:
    with running(store) as server:
        yield server


@pytest.fixture
def versions(released: Line, tmp_path: Path) -> tuple[Path, Release, Release]:
    """A root of one's own with two versions of the model, the first in use."""
    shutil.copytree(released.paths.release, tmp_path / "one")
    one = read_release(tmp_path / "one")
    two = colder(one, tmp_path / "two", 20.0)
    use(tmp_path, one)
    return tmp_path, one, two


def test_one_input_gets_one_answer_that_names_its_version(server: Running, store: Path) -> None:
    answer = server.predict(TEXT).json()
    assert answer["label"] in ("positive", "negative")
    assert answer["version"] == read_release(store / "one").version
    assert sum(answer["probabilities"]) == pytest.approx(1)
    assert answer["latency_ms"] > 0
    assert answer["id"] != server.predict(TEXT).json()["id"]


def test_a_list_gets_a_list_in_its_order(server: Running) -> None:
    texts = [{"text": "dull " * (20 - number)} for number in range(20)]
    listed = server.predict(texts).json()
    alone = [server.predict(text).json() for text in texts]
    assert [answer["label"] for answer in listed] == [answer["label"] for answer in alone]
    # Dynamic quantisation takes its scale from the whole batch.
    assert [a["probability"] for a in listed] == pytest.approx([a["probability"] for a in alone], abs=0.05)


def test_a_row_without_an_answer_says_why_and_the_others_are_answered(server: Running) -> None:
    empty, whole = server.predict([{"text": "<br />"}, TEXT]).json()
    assert (empty["label"], empty["reason"]) == (None, "text is empty")
    assert whole["label"] is not None


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"{", 400, "not JSON"),
        (b'{"text": NaN}', 400, "not JSON"),
        (b'{"text": "\xff"}', 400, "UTF-8"),
        (b"[" * 200_000, 413, "larger"),
        (b"[" * 5_000, 400, "not JSON"),
        (b'{"txt": "a"}', 422, "Did you mean 'text'?"),
        (b'{"text": 1}', 422, "text has to be a string."),
        (b'{"text": null}', 422, "text is missing"),
        (b'[{"text": "a"}, {"text": ["a"]}]', 422, "Row 1: text has to be a string."),
        (b"[]", 422, "empty"),
        (b"7", 422, "Expected an object"),
        (b"[7]", 422, "Row 0: expected an object"),
        (b'{"text": "  "}', 422, "text is empty"),
        (b"[" + b'{"text": "a"},' * 32 + b'{"text": "a"}]', 413, "at most 32"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_a_sentence(
    server: Running, content: bytes, status: int, sentence: str
) -> None:
    answer = server.client.post("/models/tiny/predict", content=content)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


def test_a_text_without_end_is_refused_before_anybody_waits_for_it(versions: tuple[Path, Release, Release]) -> None:
    row, message = {"text": "1 " * 50_001}, "text has 100,002 characters; at most 100,000 are taken"
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [row["text"]]}
    with running(versions[0], max_request_mb=1) as server:
        for path, content in (("/models/tiny/predict", row), ("/v2/models/tiny/infer", {"inputs": [tensor]})):
            answer = server.client.post(path, json=content)
            assert (answer.status_code, message in answer.json()["error"]) == (413, True)


def test_a_model_that_is_not_there_is_named_with_those_that_are(server: Running) -> None:
    answer = server.predict(TEXT, model="tidy")
    assert answer.status_code == 404
    assert answer.json()["error"] == "No model 'tidy' is in use. Did you mean 'tiny'? In use: tiny."


def test_emoji_null_bytes_and_right_to_left_text_are_answered(server: Running) -> None:
    for text in ("🎬🍿" * 50, "a\0b", "סרט נפלא, a film", "‮reversed"):
        assert server.predict({"text": text}).status_code == 200, text


def test_a_text_in_letters_that_the_vocabulary_does_not_have_is_refused_with_a_sentence(server: Running) -> None:
    refused = server.predict({"text": "סרט נפלא"})
    assert refused.status_code == 422
    assert "text is in no script that the model has learned" in refused.json()["error"]


def test_a_caller_who_sends_slowly_is_sent_away(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /models/tiny/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)
    assert server.predict(TEXT).status_code == 200


def test_models_are_listed_with_version_metrics_and_card(server: Running, store: Path) -> None:
    version = read_release(store / "one").version
    (listed,) = server.client.get("/models").json()
    assert (listed["model"], listed["version"]) == ("tiny", version)
    shown = server.client.get("/models/tiny").json()
    assert 0 <= shown["metrics"]["accuracy"]["value"] <= 1
    assert "tiny" in shown["card"]


def test_figures_are_there_for_prometheus(server: Running) -> None:
    def answered() -> float:
        lines = server.client.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("modelmill_rows_total{")]
        return float(counts[0].split()[-1])

    server.predict(TEXT)
    before = answered()
    server.predict([TEXT, TEXT])
    assert answered() == before + 2


@pytest.mark.parametrize("num_swaps", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_promotion_under_load_loses_no_request_and_mixes_no_answer(
    versions: tuple[Path, Release, Release], num_swaps: int
) -> None:
    root, one, two = versions
    seen: list[tuple[str, float]] = []
    failed: list[str] = []
    stop = threading.Event()

    def ask(server: Running) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/models/tiny/predict", json=TEXT)
                if answer.status_code != 200:
                    failed.append(answer.text)
                    return
                seen.append((answer.json()["version"], answer.json()["probability"]))

    with running(root) as server:
        callers = [threading.Thread(target=ask, args=(server,)) for _ in range(3)]
        for caller in callers:
            caller.start()
        for release in (two, one) * (num_swaps // 2):
            use(root, release)
            wait_for(server, release.version)
        stop.set()
        for caller in callers:
            caller.join(30)
    assert failed == []
    sure = [probability for version, probability in seen if version == one.version]
    unsure = [probability for version, probability in seen if version == two.version]
    assert len(sure) > 10
    assert len(unsure) > 10
    assert max(unsure) < min(sure)


def test_a_damaged_version_never_takes_over(versions: tuple[Path, Release, Release]) -> None:
    root, one, two = versions
    with (two.folder / "model.onnx").open("ab") as file:
        file.write(b"more")
    with running(root) as server:
        use(root, two)
        reason = wait_until(lambda: server.live.failures.get("tiny"))
        assert "model.onnx is not the file that the release was made with" in reason
        assert server.predict(TEXT).json()["version"] == one.version
        # The one before answers, so no balancer has to take this server out; but somebody has to hear of it.
        ready = server.client.get("/readyz")
        assert (ready.status_code, ready.json()["failures"]) == (200, {"tiny": reason})
        assert 'modelmill_version_failed{model="tiny"} 1.0' in server.client.get("/metrics").text
        use(root, one)
        wait_until(lambda: not server.client.get("/readyz").json()["failures"])


def test_a_version_that_answers_otherwise_than_where_it_was_made_never_takes_over(
    versions: tuple[Path, Release, Release],
) -> None:
    root, one, two = versions
    golden = read_json(two.folder / GOLDEN)
    golden["rows"][0]["outputs"]["logits"] = [9.0, -9.0]
    write_json(two.folder / GOLDEN, golden)
    two = colder(two, root / "three", 20.0)  # sealed anew: its hashes are right
    with running(root) as server:
        use(root, two)
        assert "does not answer as it did where it was made" in wait_until(lambda: server.live.failures.get("tiny"))
        assert server.predict(TEXT).json()["version"] == one.version


def test_a_server_whose_only_version_is_damaged_is_not_ready_and_says_why(
    versions: tuple[Path, Release, Release],
) -> None:
    root, one, _ = versions
    (one.folder / "model.onnx").write_bytes(b"")
    with running(root) as server:
        ready = server.client.get("/readyz")
        assert ready.status_code == 503
        assert "model.onnx is not the file that the release was made with" in ready.json()["error"]
        assert server.client.get("/v2/health/ready").status_code == 503
        assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("damage", ["{", "[]", '{"tiny": 7}', '{"tiny": {}}'])
def test_a_damaged_list_of_versions_takes_none_out_of_use(versions: tuple[Path, Release, Release], damage: str) -> None:
    root, one, _ = versions
    with running(root) as server:
        (root / ".mill/live.json").write_text(damage)
        wait_until(lambda: server.live.failures)
        assert server.predict(TEXT).json()["version"] == one.version


def test_what_cannot_be_read_is_said_and_later_promotions_are_followed(
    versions: tuple[Path, Release, Release], caplog: pytest.LogCaptureFixture
) -> None:
    root, one, two = versions
    file = root / ".mill/live.json"
    with running(root) as server:
        file.unlink()
        file.mkdir()
        reason = wait_until(lambda: server.live.failures.get("live.json"))
        assert reason == f"{file} cannot be read: Is a directory."
        assert server.predict(TEXT).json()["version"] == one.version
        time.sleep(0.5)
        file.rmdir()
        use(root, two)
        wait_for(server, two.version)
        assert "live.json" not in server.live.failures
    assert [record.getMessage() for record in caplog.records].count("unread") == 1


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("no thread is left")])
def test_what_fails_for_a_moment_is_looked_at_again_though_it_has_not_changed(
    versions: tuple[Path, Release, Release], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    root, _, two = versions
    name = "tasks.serving.live.read_json" if isinstance(error, OSError) else "threading.Thread.start"
    owner, _, attribute = name.rpartition(".")
    real = pkgutil.resolve_name(name)
    failed = threading.Event()

    def fail(*arguments: Any) -> Any:
        is_meant = isinstance(error, OSError) or arguments[0].name.startswith("load-")
        if is_meant and not failed.is_set():
            failed.set()
            raise error
        return real(*arguments)

    with running(root) as server:
        monkeypatch.setattr(pkgutil.resolve_name(owner), attribute, fail)
        use(root, two)
        assert failed.wait(10)
        wait_for(server, two.version)


def test_a_version_that_is_too_slow_never_takes_over_however_often_it_is_tried(
    versions: tuple[Path, Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, one, two = versions
    monkeypatch.setattr("tasks.serving.live._TRIED_AGAIN_SECONDS", 0.3)
    real, begun = pkgutil.resolve_name("tasks.serving.live.open_served"), []

    def slowly(*arguments: Any, **how: Any) -> Any:
        begun.append(arguments)
        found = real(*arguments, **how)
        time.sleep(1)
        return found

    with running(root) as server:
        monkeypatch.setattr("tasks.serving.live.open_served", slowly)
        server.live._serving = server.live._serving.model_copy(update={"swap_seconds": 1e-9})
        use(root, two)
        assert "is not up after 1e-09 s" in wait_until(lambda: server.live.failures.get("tiny"))
        wait_until(lambda: len(begun) > 2)
        assert server.predict(TEXT).json()["version"] == one.version
        assert sum(thread.name == "load-tiny" for thread in threading.enumerate()) <= 1


def test_a_rollback_is_in_use_within_two_seconds_and_loads_nothing_anew(
    versions: tuple[Path, Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, one, two = versions
    with running(root) as server:
        use(root, two)
        wait_for(server, two.version)
        monkeypatch.setattr("tasks.serving.served.open_answerer", None)
        started = time.monotonic()
        use(root, one)
        wait_for(server, one.version)
        assert time.monotonic() - started < 2


def test_files_that_were_mended_are_found_by_trying_again(
    versions: tuple[Path, Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _, two = versions
    model = two.folder / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(b"")
    monkeypatch.setattr("tasks.serving.live._TRIED_AGAIN_SECONDS", 0.5)
    with running(root) as server:
        use(root, two)
        wait_until(lambda: server.live.failures.get("tiny"))
        model.write_bytes(whole)
        wait_for(server, two.version)
        wait_until(lambda: not server.live.failures)


def test_a_rollback_to_files_that_were_damaged_meanwhile_stays_out(versions: tuple[Path, Release, Release]) -> None:
    root, one, two = versions
    with running(root) as server:
        use(root, two)
        wait_for(server, two.version)
        (one.folder / "model.onnx").write_bytes(b"")
        use(root, one)
        assert "model.onnx is not the file" in wait_until(lambda: server.live.failures.get("tiny"))
        assert server.predict(TEXT).json()["version"] == two.version


def test_a_rollback_waits_for_no_version_that_is_still_on_its_way(
    versions: tuple[Path, Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, one, two = versions
    arrived, go_on = threading.Event(), threading.Event()

    def slow(root: Path, model: str, entry: Any, serving: Serving, **how: Any) -> Served:
        if entry["version"] == two.version:
            arrived.set()
            assert go_on.wait(30)
        return open_served(root, model, entry, serving, **how)

    monkeypatch.setattr("tasks.serving.live.open_served", slow)
    three = colder(one, root / "three", 5.0)
    with running(root) as server:
        use(root, two)
        assert arrived.wait(10)
        started = time.monotonic()
        use(root, three)
        wait_for(server, three.version)
        assert time.monotonic() - started < 2
        go_on.set()
        time.sleep(0.5)
        assert server.predict(TEXT).json()["version"] == three.version


def test_a_server_starts_without_any_model_and_takes_the_first(versions: tuple[Path, Release, Release]) -> None:
    root, one, _ = versions
    (root / ".mill" / "live.json").unlink()
    with running(root) as server:
        assert "No model is in use yet" in server.client.get("/readyz").json()["error"]
        use(root, one)
        wait_until(lambda: server.client.get("/readyz").status_code == 200)


def test_more_than_can_be_answered_is_sent_away_at_once_and_the_server_is_well_after(
    versions: tuple[Path, Release, Release],
) -> None:
    root, _, _ = versions
    content = [{"text": "word " * 200}] * 16
    statuses: list[int] = []

    def ask(server: Running) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            answer = client.post("/models/tiny/predict", json=content)
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1

    with running(root, queue_rows=16) as server:
        callers = [threading.Thread(target=ask, args=(server,)) for _ in range(24)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert set(statuses) == {200, 429}
        assert server.predict(TEXT).status_code == 200


def wait_for(server: Running, version: str) -> None:
    # A busy machine may send one of these away.
    wait_until(lambda: server.predict(TEXT).json().get("version") == version)
