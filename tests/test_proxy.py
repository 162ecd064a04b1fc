"""The reverse proxy of docs/nginx.conf, by a real nginx with a certificate of its own."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tasks.release import read_release
from tasks.serving.keys import add_key
from tests.benchmarks.contestants import free_port
from tests.conftest import REPOSITORY, Line
from tests.model_server import Running, running, use

TEXT = {"text": "a warm and moving film"}


@dataclass(frozen=True)
class Proxied:
    """The server behind the proxy, and a client of the proxy who trusts its certificate and has a key."""

    server: Running
    client: httpx.Client
    http_port: int


def need_nginx() -> None:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")


@pytest.fixture
def proxied(released: Line, tmp_path: Path) -> Iterator[Proxied]:
    need_nginx()
    shutil.copytree(released.paths.release, tmp_path / "one")
    use(tmp_path, read_release(tmp_path / "one"))
    key = add_key(tmp_path, "shop", ["predict"], None)
    with running(tmp_path) as server:
        https, http = free_port(), free_port()
        process = _nginx(tmp_path, server.url.rpartition(":")[2], https, http)
        try:
            trusted = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=f"https://localhost:{https}", verify=trusted, headers=headers) as client:
                _wait_until_it_listens(client)
                yield Proxied(server, client, http)
        finally:
            process.terminate()
            process.wait(30)


def _nginx(folder: Path, port: str, https: int, http: int) -> "subprocess.Popen[bytes]":
    """Start nginx with the configuration as it is shipped, but for its ports, its name and its certificate."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem"),
            *("-out", folder / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    shipped = (REPOSITORY / "docs/nginx.conf").read_text()
    changes = {
        "127.0.0.1:8000;\n    keepalive": f"127.0.0.1:{port};\n    keepalive",
        "listen 443": f"listen 127.0.0.1:{https}",
        "listen 80": f"listen 127.0.0.1:{http}",
        "/etc/letsencrypt/live/models.example.org/fullchain.pem": str(folder / "certificate.pem"),
        "/etc/letsencrypt/live/models.example.org/privkey.pem": str(folder / "key.pem"),
        "models.example.org": "localhost",
    }
    for said, instead in changes.items():
        assert said in shipped, said
        shipped = shipped.replace(said, instead)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nworker_processes 1;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{shipped}}}\n"
    )
    return subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)


def _wait_until_it_listens(client: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.05)


def test_the_server_is_reached_by_tls_and_with_a_key_alone(proxied: Proxied) -> None:
    assert proxied.client.post("/models/tiny/predict", json=TEXT).json()["label"] in ("positive", "negative")
    assert proxied.client.get("/readyz").headers["Strict-Transport-Security"] == "max-age=31536000"
    assert proxied.client.get("/models", headers={"Authorization": ""}).status_code == 401
    plain = httpx.get(f"http://localhost:{proxied.http_port}/models")
    assert (plain.status_code, plain.headers["Location"]) == (301, "https://localhost/models")
    assert proxied.client.get("/metrics").status_code == 404


def test_what_the_proxy_refuses_is_a_sentence_too(proxied: Proxied) -> None:
    large = proxied.client.post("/models/tiny/predict", content=b"x" * 5_000_000)
    assert (large.status_code, large.json()) == (
        413,
        {"error": "The body is larger than 4 MB. Send fewer rows at a time."},
    )
    statuses = [proxied.client.get("/healthz").status_code for _ in range(400)]
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in (proxied.client.get("/healthz") for _ in range(200)) if answer.is_error)
    assert (refused.headers["Retry-After"], refused.json()["error"][:17]) == ("1", "This address asks")


def test_a_server_that_is_away_is_said_and_when_to_come_again(tmp_path: Path) -> None:
    need_nginx()
    https = free_port()
    process = _nginx(tmp_path, str(free_port()), https, free_port())
    try:
        trusted = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
        with httpx.Client(base_url=f"https://localhost:{https}", verify=trusted) as client:
            _wait_until_it_listens(client)
            away = client.get("/models")
    finally:
        process.terminate()
        process.wait(30)
    assert (away.status_code, away.headers["Retry-After"]) == (503, "5")
    assert away.json() == {"error": "The model server is not there. Ask again in 5 s."}
