"""What the server says of itself: tasks/serving/docs.py."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tasks.release import read_release
from tests.conftest import Line
from tests.model_server import Running, running, use


@pytest.fixture(scope="module")
def server(released: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(released.paths.release, root / "one")
    use(root, read_release(root / "one"))
    with running(root) as server:
        yield server


def test_the_schema_names_the_models_in_use_and_what_they_read(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    predict = schema["paths"]["/models/{name}/predict"]["post"]
    assert predict["parameters"][0]["schema"] == {"type": "string", "enum": ["tiny"]}
    one, many = predict["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert one["properties"] == {"text": {"type": "string"}}
    assert one["required"] == ["text"]
    assert many["items"] == one
    feedback = schema["paths"]["/models/{name}/feedback"]["post"]["requestBody"]["content"]["application/json"]
    assert feedback["schema"]["oneOf"][0]["required"] == ["id", "label"]


def test_an_answer_is_as_the_schema_says(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    answer = server.predict({"text": "a film"}).json()
    content = schema["paths"]["/models/{name}/predict"]["post"]["responses"]["200"]["content"]
    told = content["application/json"]["schema"]["oneOf"][0]
    assert set(told["required"]) <= set(answer)


def test_the_page_shows_every_route_with_an_example_and_needs_nothing_from_elsewhere(server: Running) -> None:
    page = server.client.get("/docs").text
    for path in server.client.get("/openapi.json").json()["paths"]:
        assert path in page
    assert "&#34;text&#34;: &#34;…&#34;" in page
    assert not re.search(r"<script|src=|https?://(?!127\.0\.0\.1:8000)", page)
