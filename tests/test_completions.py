"""OpenAI's API, asked by OpenAI's own client and by hand: tasks/serving/completions.py."""

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from flows.git import git
from flows.monitor import monitor
from flows.portal import add_portal
from flows.recipes import add
from tasks import problems
from tasks.deploy import deploy
from tasks.monitor import open_subject
from tasks.params import Scratch, TrainedTokenizer, load_model
from tasks.paths import Paths
from tasks.release import read_release
from tasks.shards import write_json
from tasks.windows import Window, open_windows
from tests.conftest import REPOSITORY, Line, walk
from tests.model_server import Running, running, use
from tests.test_schemathesis import asked_by_schema
from tests.watched import write_params

PROMPT = "The sun rises in"
ASKED = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder with a decoder that learned next to nothing."""
    root = tmp_path_factory.mktemp("writes")
    shutil.copy(REPOSITORY / "params.yaml", root)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    shutil.copytree(REPOSITORY / "recipes", root / "recipes")
    add("tiny", "text_generation", root)
    params = load_model("tiny", root / "params.yaml")
    base = Scratch(architecture="llama", hidden_size=32, layers=1, heads=2, feed_forward_size=64, max_positions=64)
    tokenizer = TrainedTokenizer(algorithm="bpe", vocabulary=400)
    changes: dict[str, Any] = {
        "base": base,
        "threads": 1,
        "tokenize": params.tokenize.model_copy(update={"tokenizer": tokenizer, "max_tokens": 64}),
        "train": params.train.model_copy(update={"epochs": 1, "batch_size": 2}),
        "export": params.export.model_copy(update={"variants": ["fp32"]}),
        "deploy": params.deploy.model_copy(update={"floors": {}, "must_beat_baselines": False}),
    }
    line = Line(Paths("tiny", root), params.model_copy(update=changes))
    problem = problems.load("text_generation")
    examples = problem.examples()
    rows = pl.concat([examples] * 8).with_columns(
        id=pl.format("r{}", pl.int_range(8 * len(examples))),
        split=pl.Series(
            [split for split in ("train", "train", "validation", "test") * 2 for _ in range(len(examples))]
        ),
    )
    walk(line, rows)
    write_json(line.paths.report("validate"), {"rows": {"collected": len(rows), "valid": len(rows), "quarantined": 0}})
    tally = {"rows_in": len(rows), "rows_kept": len(rows), "dropped": {}, "redacted": {}}
    write_json(line.paths.report("clean"), tally)
    write_params(root, line, window=20)
    deploy(line.paths, line.paths.release, line.paths.report("deploy"), params=line.params, problem=problem)
    use(root, read_release(line.paths.release))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    with running(root, threads=2) as server:
        yield server


@pytest.fixture(scope="module")
def openai(server: Running) -> dict[str, Any]:
    """What OpenAI's client saw, in an environment of its own."""
    python = REPOSITORY / ".venv-clients/openai/bin/python"
    if not python.exists():
        pytest.skip("OpenAI's client is not installed: make .venv-clients/openai/.installed")
    command = [str(python), str(REPOSITORY / "tests/clients/openai_api.py"), server.url, "tiny", PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def asked(server: Running, route: str = "/v1/completions", **changes: Any) -> Any:
    return server.client.post(route, json={**ASKED, **changes})


def test_openais_client_finds_the_model_and_gets_a_text_with_its_tokens(openai: dict[str, Any], root: Path) -> None:
    assert openai["models"] == ["tiny"]
    assert openai["retrieved"] == "tiny"
    whole = openai["whole"]
    assert whole["system_fingerprint"] == read_release(root / "models/tiny/release").version
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 12
    assert whole["usage"]["prompt_tokens"] > 1


def test_openais_client_reads_the_same_text_piece_by_piece(openai: dict[str, Any]) -> None:
    *pieces, usage = openai["pieces"]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == openai["whole"]["choices"][0]["text"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces][-2:] == [None, "length"]
    assert len(pieces) > 3
    assert usage["usage"] == openai["whole"]["usage"]


def test_openais_client_chats_and_hears_the_same_piece_by_piece(openai: dict[str, Any]) -> None:
    (choice,) = openai["chat"]["choices"]
    assert choice["message"]["role"] == "assistant"
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in openai["chunks"]]
    assert "".join(deltas) == choice["message"]["content"]


def test_chance_follows_the_seed(openai: dict[str, Any]) -> None:
    first, again, *others = openai["drawn"]
    assert first == again
    assert any(other != first for other in others)


def test_openais_client_hears_what_is_wrong(openai: dict[str, Any]) -> None:
    statuses, sentences = zip(*openai["errors"], strict=True)
    assert statuses == (404, 422, 422, 422)
    for sentence, expected in zip(
        sentences,
        (
            "No model 'other' is in use",
            "5000 more would not fit into the 64",
            "n is not supported. Leave it out.",
            "Prompt 1: nothing is written for it: text is empty.",
        ),
        strict=True,
    ):
        assert expected in sentence


def test_a_text_that_was_written_stands_in_the_journal_under_its_id(server: Running) -> None:
    answer = asked(server).json()
    kept = server.journal.find(answer["id"])
    assert kept is not None
    assert kept["inputs"] == {"text": PROMPT}
    assert kept["answer"]["continuation"] == answer["choices"][0]["text"]
    assert kept["answer"]["bits_per_byte"] > 0
    assert kept["version"] == answer["system_fingerprint"]


def test_a_drawn_text_can_be_drawn_again_by_what_the_journal_has_of_it(server: Running) -> None:
    drawn = asked(server, temperature=1.3, top_p=0.9).json()
    kept = server.journal.find(drawn["id"])
    assert kept is not None
    again = {name: kept["answer"]["sampling"][name] for name in ("temperature", "top_k", "top_p", "seed")}
    assert (again["temperature"], again["top_p"]) == (1.3, 0.9)
    assert asked(server, **again).json()["choices"] == drawn["choices"]
    assert asked(server, **again | {"seed": again["seed"] + 1}).json()["choices"] != drawn["choices"]


def test_the_callers_own_words_to_stop_at_are_not_kept(server: Running) -> None:
    kept = server.journal.find(asked(server, stop="ann@example.org").json()["id"])
    assert kept is not None
    assert "ann@example.org" not in json.dumps(kept, default=str)


def test_what_chance_has_written_is_not_held_against_what_is_likeliest(server: Running, root: Path) -> None:
    subject = open_subject(read_release(root / "models/tiny/release"))
    windows = open_windows(f"sqlite:///{root}/.mill/journal.sqlite", "tiny")

    def watched(**changes: Any) -> list[str]:
        before = windows.pending(0, 2**62)["seq"].max() or 0
        asked(server, prompt=[PROMPT, "Water boils when"], **changes)
        after = windows.pending(int(before), 2**62)["seq"].to_list()  # type: ignore[arg-type]
        rows = windows.rows(Window(subject.version, after[0], after[-1], len(after)), subject.inputs, subject.answer)
        assert rows["continuation"].str.len_bytes().min() > 0  # type: ignore[operator]
        return subject.runtime.problem.watched(rows.select(subject.answer.keys())).columns

    assert watched() == ["bits_per_byte", "continuation_num_words", "repetition"]
    assert watched(temperature=1.0) == ["bits_per_byte"]
    windows.close()


def test_the_monitor_looks_at_drawn_texts_by_what_chance_has_not_written(server: Running, root: Path) -> None:
    monitor(root, "tiny", say=lambda _: None)
    for seed in range(20):
        asked(server, temperature=1.0, seed=seed)
    looked = monitor(root, "tiny", say=lambda _: None)
    assert looked.num_windows == 1
    names = {test["name"] for test in looked.tests}
    assert {"bits_per_byte", "num_chars", "language"} <= names
    assert not {"repetition", "continuation_num_words"} & names
    page = looked.page.read_text(encoding="utf-8")
    assert "It learns from texts alone: no labels are asked for" in page
    assert "mill feedback" not in page


def test_a_streamed_text_is_in_the_journal_before_its_end_is_told(server: Running) -> None:
    with server.client.stream("POST", "/v1/completions", json={**ASKED, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
            if event.get("choices") and event["choices"][0]["finish_reason"]:
                assert server.journal.find(event["id"]) is not None
                break
        else:
            pytest.fail("the end was not told")


def test_several_prompts_are_answered_in_their_order_each_as_alone(server: Running) -> None:
    prompts = [PROMPT, "Water boils when"]
    together = [choice["text"] for choice in asked(server, prompt=prompts).json()["choices"]]
    assert together == [asked(server, prompt=prompt).json()["choices"][0]["text"] for prompt in prompts]


def test_a_stop_string_ends_the_text_before_it_whole_or_in_pieces(server: Running) -> None:
    text = asked(server, max_tokens=30).json()["choices"][0]["text"]
    stop = text[6:9]
    (choice,) = asked(server, max_tokens=30, stop=["never there", stop]).json()["choices"]
    assert choice == {"index": 0, "text": text[: text.index(stop)], "logprobs": None, "finish_reason": "stop"}
    reply = asked(server, max_tokens=30, stop=stop, stream=True).text
    events = [json.loads(line[6:]) for line in reply.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
    assert reply.endswith("data: [DONE]\n\n")


def test_without_a_number_of_tokens_a_chat_goes_on_as_far_as_the_model_reads(server: Running) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    usage = server.client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "seed": 1}).json()
    assert usage["usage"]["total_tokens"] == 64 or usage["choices"][0]["finish_reason"] == "stop"


def test_more_than_can_be_written_or_wait_is_sent_away(root: Path) -> None:
    with running(root, threads=1) as server:
        answers: list[int] = []
        ask = {**ASKED, "prompt": [PROMPT] * 8, "max_tokens": 40}
        callers = [
            threading.Thread(target=lambda: answers.append(server.client.post("/v1/completions", json=ask).status_code))
            for _ in range(8)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert set(answers) == {200, 429}
        assert asked(server).status_code == 200


def test_who_leaves_in_the_middle_costs_no_more_and_what_was_written_is_kept(root: Path) -> None:
    with running(root, threads=1) as server:
        before = server.journal.count("tiny")
        ask = {**ASKED, "prompt": [PROMPT] * 8, "max_tokens": 55, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=ask) as reply:
            next(reply.iter_lines())
        assert asked(server).status_code == 200  # when the only writer is free again
        assert 1 <= server.journal.count("tiny") - 1 - before < 8
        counted = server.client.get("/metrics").text
        assert 'modelmill_requests_total{model="tiny",outcome="left"} 1.0' in counted


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": 5}, "prompt has to be a string"),
        ({"prompt": []}, "0 prompts in one request"),
        ({"temperature": 3}, "temperature has to be a number from 0 to 2"),
        ({"temperature": True}, "temperature has to be a number from 0 to 2"),
        ({"top_p": 0}, "top_p has to be a number"),
        ({"top_k": 1.5}, "top_k has to be a whole number"),
        ({"max_tokens": 0}, "max_tokens has to be a whole number from 1"),
        ({"stop": [""]}, "stop has to be a string"),
        ({"stream": "yes"}, "stream has to be true or false"),
        ({"echo": True}, "echo is not supported"),
        ({"best_of": True}, "best_of is not supported"),
        ({"model": None}, "model has to be the name of a model"),
        ({"temprature": 1}, "'temprature' is not known"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_a_sentence(
    server: Running, changes: dict[str, Any], expected: str
) -> None:
    reply = asked(server, **changes)
    assert reply.status_code == 422
    assert expected in reply.json()["error"]["message"]


def test_what_changes_no_text_may_be_said(server: Running) -> None:
    assert asked(server, user="u1", n=1, logit_bias={}, logprobs=None, frequency_penalty=0).status_code == 200


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}]]
)
def test_messages_that_are_none_are_refused(server: Running, messages: Any) -> None:
    reply = server.client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert reply.status_code == 422


def test_a_model_that_writes_nothing_is_no_model_of_this_api(released: Line, tmp_path: Path) -> None:
    shutil.copytree(released.paths.release, tmp_path / "one")
    use(tmp_path, read_release(tmp_path / "one"))
    with running(tmp_path) as server:
        assert server.client.get("/v1/models").json()["data"] == []
        reply = asked(server)
        assert reply.status_code == 404
        assert "is of text_classification, which writes no text" in reply.json()["error"]["message"]


def test_what_is_written_has_no_label_to_send_back(server: Running) -> None:
    answer = server.predict({"text": PROMPT}).json()
    for content in ({"id": answer["id"]}, {"id": answer["id"], "continuation": "the east"}, []):
        refused = server.client.post("/models/tiny/feedback", json=content)
        assert (refused.status_code, "has nothing to label" in refused.json()["error"]) == (422, True)


def test_a_body_that_is_too_large_is_refused_as_openais_clients_read_it(root: Path) -> None:
    with running(root, max_request_mb=0.001) as server:
        reply = asked(server, prompt="a" * 2000)
        assert reply.status_code == 413
        assert "larger than 1,000 bytes" in reply.json()["error"]["message"]


def test_no_case_of_the_schema_or_against_it_is_a_defect(server: Running, tmp_path: Path) -> None:
    statuses = asked_by_schema(server, tmp_path, 150, "^/v1/")
    assert {404, 422} <= set(statuses)
    assert asked(server).status_code == 200


def test_the_pages_form_shows_what_a_model_wrote(root: Path) -> None:
    git(root, "init", "-q", "-b", "main")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "all")
    with running(root, threads=2, also=lambda app: add_portal(app, root, app.state.service)) as server:
        page = httpx.post(f"{server.url}/reports/", data={"model": "tiny", "text": PROMPT}, timeout=60).text
        answer = httpx.post(f"{server.url}/models/tiny/predict", json={"text": PROMPT}, timeout=60).json()
    shown = re.search(r'<p class="lead"><strong>(.*?)</strong>', page, re.DOTALL)
    assert shown is not None
    assert html.unescape(shown[1]) == answer["continuation"]
