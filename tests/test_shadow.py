"""A challenger that gets a copy of what is asked, and answers nobody: tasks/serving."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.release import Release, read_release
from tasks.shards import MANIFEST, read_json, sha256_of, write_json
from tests.conftest import Line
from tests.model_server import Running, colder, running, use
from tests.waiting import wait_until

TEXT = {"text": "a warm and moving film"}


@pytest.fixture
def versions(released: Line, tmp_path: Path) -> tuple[Path, Release, Release]:
    """A root with a version in use and a challenger in its shadow."""
    shutil.copytree(released.paths.release, tmp_path / "one")
    one = read_release(tmp_path / "one")
    two = colder(one, tmp_path / "two", 20.0)
    use(tmp_path, one)
    put_in_shadow(tmp_path, two)
    return tmp_path, one, two


def put_in_shadow(root: Path, release: Release) -> None:
    entry = {
        "version": release.version,
        "folder": release.folder.relative_to(root).as_posix(),
        "manifest_sha256": sha256_of(release.folder / MANIFEST),
    }
    write_json(root / ".mill/shadow.json", {"tiny": entry})


def shadowed(server: Running, count: int) -> list[dict[str, Any]]:
    wait_until(lambda: len(server.journal.window("tiny", is_shadow=True)) >= count)
    return server.journal.window("tiny", is_shadow=True).to_dicts()


def test_a_challengers_answers_are_kept_beside_those_that_were_given(versions: tuple[Path, Release, Release]) -> None:
    root, one, two = versions
    with running(root, shadow=1.0) as server:
        given = server.predict([TEXT, {"text": " "}, {"text": "write to ann@example.org"}]).json()
        copies = shadowed(server, 2)
        assert {answer["version"] for answer in given} == {one.version}
        assert {copy["version"] for copy in copies} == {two.version}
        assert [copy["shadow_of"] for copy in copies] == [given[0]["id"], given[2]["id"]]
        assert not {copy["id"] for copy in copies} & {answer["id"] for answer in given}
        assert "⟨EMAIL_1⟩" in copies[1]["inputs"]
        assert len(server.journal.window("tiny")) == server.journal.count("tiny") == 2
        label = {"id": given[0]["id"], "label": "negative"}
        assert server.client.post("/models/tiny/feedback", json=label).json() == {"received": 1, "new": 1}
        labels = [copy["label"] for copy in server.journal.window("tiny", is_shadow=True).to_dicts()]
        assert labels == ['{"label": "negative"}', None]
        wait_until(lambda: 'modelmill_shadow_rows_total{model="tiny",outcome="answered"}' in metrics(server))


def test_only_a_share_is_copied(versions: tuple[Path, Release, Release]) -> None:
    root, _, _ = versions
    with running(root, shadow=0.3) as server:
        for _ in range(60):
            assert server.predict(TEXT).status_code == 200
        wait_until(lambda: server.live.shadow("tiny"))
        found = server.journal.window("tiny", is_shadow=True)
    assert 5 <= len(found) <= 35


def test_nothing_is_copied_where_params_do_not_ask_for_it(versions: tuple[Path, Release, Release]) -> None:
    root, _, _ = versions
    with running(root, shadow=0) as server:
        server.predict(TEXT)
        assert server.live.shadow("tiny") is None
        assert server.journal.window("tiny", is_shadow=True).is_empty()


@pytest.mark.parametrize("damage", [lambda two: (two.folder / "model.onnx").write_bytes(b""), None])
def test_a_challenger_that_fails_concerns_nobody_who_asks(
    versions: tuple[Path, Release, Release], damage: Callable[[Release], Any] | None
) -> None:
    root, one, two = versions
    if damage is not None:
        damage(two)
    with running(root, shadow=1.0) as server:
        if damage is None:
            shadow = server.live.shadow("tiny")
            assert shadow is not None
            shadow.batcher._compute = lambda window, _: [  # type: ignore[method-assign]
                part.request.future.set_exception(RuntimeError("it fails")) for part in window
            ]
        assert server.predict(TEXT).json()["version"] == one.version
        if damage is None:
            wait_until(lambda: 'outcome="failed"} 1.0' in metrics(server))
        else:
            assert "model.onnx" in server.client.get("/readyz").json()["failures"]["tiny (shadow)"]
        assert server.journal.window("tiny", is_shadow=True).is_empty()


def test_a_challenger_that_was_promoted_is_no_shadow_of_itself(versions: tuple[Path, Release, Release]) -> None:
    root, _, two = versions
    with running(root, shadow=1.0) as server:
        use(root, two)
        wait_until(lambda: server.predict(TEXT).json()["version"] == two.version)
        given = {server.predict(TEXT).json()["id"] for _ in range(5)}
        time.sleep(0.3)
        assert not given & set(server.journal.window("tiny", is_shadow=True)["shadow_of"])


def test_a_shadow_that_is_taken_away_answers_no_more(versions: tuple[Path, Release, Release]) -> None:
    root, _, _ = versions
    with running(root, shadow=1.0) as server:
        assert server.live.shadow("tiny") is not None
        assert read_json(root / ".mill/shadow.json")
        write_json(root / ".mill/shadow.json", {})
        wait_until(lambda: server.live.shadow("tiny") is None)
        assert server.predict(TEXT).status_code == 200


def metrics(server: Running) -> str:
    return server.client.get("/metrics").text
