"""Who may ask for what: tasks/serving/keys.py, and the server that asks."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.release import read_release
from tasks.serving.keys import BadKey, Denied, Keys, TooOften, add_key, is_loopback, keys_file, revoke_key
from tests.conftest import Line
from tests.model_server import Running, running, use

TEXT = {"text": "a warm and moving film"}


def test_a_key_is_kept_as_a_hash_alone(tmp_path: Path) -> None:
    key = add_key(tmp_path, "shop", ["predict"], None)
    assert len(key) > 40
    assert key not in keys_file(tmp_path).read_text()
    client = Keys(tmp_path, is_open=False).admit(f"Bearer {key}", "predict")
    assert client is not None
    assert client.name == "shop"


def test_a_key_reaches_as_far_as_its_scopes_and_an_admin_everywhere(tmp_path: Path) -> None:
    shop, boss = add_key(tmp_path, "shop", ["predict"], None), add_key(tmp_path, "boss", ["admin"], None)
    keys = Keys(tmp_path, is_open=False)
    with pytest.raises(Denied, match="does not reach as far as feedback") as denied:
        keys.admit(f"Bearer {shop}", "feedback")
    assert denied.value.status == 403
    assert keys.admit(f"Bearer {boss}", "feedback") is not None


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer mill_guess", "Bearer \udcff"])
def test_whoever_has_no_key_is_denied(tmp_path: Path, given: str | None) -> None:
    add_key(tmp_path, "shop", ["predict"], None)
    with pytest.raises(Denied) as denied:
        Keys(tmp_path, is_open=True).admit(given, "predict")
    assert denied.value.status == 401


def test_a_key_that_is_taken_back_opens_nothing_at_once_though_it_was_the_last(tmp_path: Path) -> None:
    key = add_key(tmp_path, "shop", ["predict"], None)
    keys = Keys(tmp_path, is_open=True)
    keys.admit(f"Bearer {key}", "predict")
    revoke_key(tmp_path, "shop")
    for authorization in (f"Bearer {key}", None):
        with pytest.raises(Denied):
            keys.admit(authorization, "predict")


def test_without_any_key_only_an_open_server_answers(tmp_path: Path) -> None:
    assert Keys(tmp_path, is_open=True).admit(None, "predict") is None
    with pytest.raises(Denied):
        Keys(tmp_path, is_open=False).admit(None, "predict")


def test_a_client_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    slow, fast = add_key(tmp_path, "slow", ["predict"], 2), add_key(tmp_path, "fast", ["predict"], None)
    keys = Keys(tmp_path, is_open=False)
    for _ in range(2):
        keys.admit(f"Bearer {slow}", "predict")
    with pytest.raises(TooOften) as too_often:
        keys.admit(f"Bearer {slow}", "predict")
    assert 1 <= too_often.value.retry_after <= 30
    for _ in range(10):
        keys.admit(f"Bearer {fast}", "predict")


def test_whoever_waits_as_long_as_was_said_is_let_in(tmp_path: Path) -> None:
    key = add_key(tmp_path, "shop", ["predict"], 50)  # one each 1.2 s
    keys = Keys(tmp_path, is_open=False)
    with pytest.raises(TooOften) as too_often:
        for _ in range(60):
            keys.admit(f"Bearer {key}", "predict")
    time.sleep(too_often.value.retry_after)
    assert keys.admit(f"Bearer {key}", "predict") is not None


def test_mistakes_with_keys_are_explained(tmp_path: Path) -> None:
    add_key(tmp_path, "shop", ["predict"], None)
    with pytest.raises(BadKey, match="has a key already"):
        add_key(tmp_path, "shop", ["predict"], None)
    with pytest.raises(BadKey, match="Did you mean 'predict'"):
        add_key(tmp_path, "other", ["predikt"], None)
    with pytest.raises(BadKey, match="Did you mean 'shop'"):
        revoke_key(tmp_path, "shopp")


def test_loopback_is_known_in_both_families() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))


@pytest.fixture(scope="module")
def guarded(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A server that asks for keys, and one that reaches predict."""
    root = tmp_path_factory.mktemp("guarded")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    key = add_key(root, "shop", ["predict"], None)
    with running(root) as server:
        yield server, key


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/models/tiny"),
        ("POST", "/models/tiny/predict"),
        ("POST", "/models/tiny/feedback"),
        ("GET", "/metrics"),
        ("GET", "/v2/models/tiny"),
        ("GET", "/v2/models/tiny/ready"),
        ("POST", "/v2/models/tiny/infer"),
    ],
)
def test_no_route_but_health_answers_without_a_key(guarded: tuple[Running, str], method: str, path: str) -> None:
    server, _ = guarded
    answer = server.client.request(method, path, json=TEXT if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "A key is asked for" in answer.json()["error"]


def test_a_key_opens_the_routes_of_its_scope(guarded: tuple[Running, str]) -> None:
    server, key = guarded
    headers = {"Authorization": f"Bearer {key}"}
    assert server.client.get("/healthz").status_code == 200
    answer = server.client.post("/models/tiny/predict", json=TEXT, headers=headers)
    assert answer.status_code == 200
    content = {"id": answer.json()["id"], "label": "positive"}
    assert server.client.post("/models/tiny/feedback", json=content, headers=headers).status_code == 403
