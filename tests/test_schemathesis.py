"""The server asked by schemathesis, in its own environment, with what its OpenAPI schema allows and what not."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.release import read_release
from tests.conftest import REPOSITORY, Line
from tests.model_server import Running, running, use

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def server(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("schema")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    with running(root) as server:
        yield server


@pytest.mark.parametrize("cases", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_case_of_the_schema_or_against_it_is_a_defect(server: Running, tmp_path: Path, cases: int) -> None:
    statuses = asked_by_schema(server, tmp_path, cases)
    assert {200, 422} <= set(statuses)
    assert server.predict({"text": "a film"}).status_code == 200


def asked_by_schema(server: Running, folder: Path, cases: int, paths: str = "^/") -> list[int]:
    """Ask at least so many cases of the routes whose path this regular expression finds; the statuses of the answers.

    None of them is a defect, and every one is what the schema says.
    """
    python = REPOSITORY / ".venv-clients/schemathesis/bin/python"
    if not python.exists():
        pytest.skip("schemathesis is not installed: make .venv-clients/schemathesis/.installed")
    every = server.client.get("/openapi.json").json()["paths"]
    num_operations = sum(len(path) for name, path in every.items() if re.search(paths, name))
    command = [
        *(str(python), "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--include-path-regex", paths),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--mode", "all"),
        *("--max-examples", str(2 * cases // num_operations), "--seed", "1", "--continue-on-failure"),
        *("--generation-database", "none", "--no-color", "--warnings", "off"),
        *("--report", "ndjson", "--report-ndjson-path", str(folder / "events.ndjson")),
    ]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    statuses = _statuses(folder / "events.ndjson")
    assert len(statuses) >= cases, done.stdout[-2000:]
    assert max(statuses) < 500
    return statuses


def _statuses(events: Path) -> list[int]:
    """The status of every answer that the report has, wherever it stands in it."""
    found: list[int] = []

    def look(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("status_code"), int):
                found.append(value["status_code"])
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    for line in events.read_text().splitlines():
        look(json.loads(line))
    return found
