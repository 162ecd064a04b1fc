"""Every problem on the whole line, small: learned from its own examples, released, asked, watched."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.generate import generate
from flows.git import git
from flows.portal import add_portal
from flows.predict import predict
from flows.recipes import add
from flows.score import score
from tasks import problems
from tasks.answers import open_answerer
from tasks.attribution import NOT_EXPLAINED, can_explain, word_effects
from tasks.deploy import deploy
from tasks.descriptors import describe
from tasks.errors import DataError, ParamsError
from tasks.golden import differences
from tasks.labels import targets_of
from tasks.monitor import judge_window, open_subject
from tasks.params import load_model
from tasks.paths import Paths
from tasks.release import read_release
from tasks.runtime import load_runtime
from tasks.serving.open_inference import datatype_of
from tasks.shards import read_json, sha256_of, write_json
from tasks.writing import Sampling
from tests.conftest import REPOSITORY, Line, shrunk, walk, write_params
from tests.model_server import Running, running, use
from tests.test_problems import NAMES

# What the fixtures of the film reviews cover already is not made once more.
OTHERS = [name for name in NAMES if name != "text_classification"]

EPOCHS = 20
SPLITS = ("train", "train", "validation", "test")


@pytest.fixture(scope="module", params=OTHERS)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A release of the problem's recipe, learned from its examples over and over."""
    root = tmp_path_factory.mktemp(request.param)
    for name in ("params.yaml", "dvc.yaml", "recipes"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    add("mine", request.param, root)
    params = shrunk(load_model("mine", root / "params.yaml"), floors={}, must_beat_baselines=False)
    patient = params.train.early_stopping.model_copy(update={"patience": EPOCHS})
    # Packed rows are few, and a step has to be one of many.
    batch_size = 2 if request.param == "text_generation" else params.train.batch_size
    train = params.train.model_copy(update={"epochs": EPOCHS, "early_stopping": patient, "batch_size": batch_size})
    sliced = params.evaluate.model_copy(update={"slices": ["length_quartile"]})  # examples have no further columns
    # Of six texts each has its own number, and what int8 adds, by which texts stand beside it, would move them.
    exact = params.export.model_copy(update={"variants": ["fp32"]})
    params = params.model_copy(update={"train": train, "evaluate": sliced, "export": exact})
    line = Line(Paths("mine", root), params)
    examples = problems.load(request.param).examples()
    rows = pl.concat([examples] * 40).with_columns(
        id=pl.format("r{}", pl.int_range(40 * len(examples))),
        split=pl.Series([split for split in SPLITS * 10 for _ in range(len(examples))]),
    )
    walk(line, rows)
    write_json(line.paths.report("validate"), {"rows": {"collected": len(rows), "valid": len(rows), "quarantined": 0}})
    write_json(
        line.paths.report("clean"), {"rows_in": len(rows), "rows_kept": len(rows), "dropped": {}, "redacted": {}}
    )
    write_params(line)
    problem = problems.load(request.param)
    deploy(line.paths, line.paths.release, line.paths.report("deploy"), params=params, problem=problem)
    return line


def test_it_is_measured_beside_its_baselines_and_every_plot_of_the_pipeline_is_there(line: Line) -> None:
    problem, report = problems.load(line.params.problem), read_json(line.paths.report("evaluate"))
    assert set(report["metrics"]) >= {problem.headline}
    assert report["baselines"]
    assert {path.stem for path in line.paths.plots.glob("*.json")} == {
        "confusion",
        "loss",
        "precision_recall",
        "reliability",
    }
    assert line.paths.page("evaluate").stat().st_size > 1000


def test_of_what_predicts_tokens_the_card_says_how_surprised_each_variant_is(line: Line) -> None:
    export, card = read_json(line.paths.report("export")), (line.paths.release / "README.md").read_text()
    assert (
        ("checkpoint" in export)
        == ("Perplexity per token" in card)
        == bool(problems.load(line.params.problem).decoding)
    )
    for name, found in export["variants"].items():
        if "perplexity" in found:
            assert f"| {name} | {found['bytes'] / 1e6:.1f} | {found['perplexity']:.3f} |" in card


def test_it_learns_its_own_examples(line: Line) -> None:
    problem, report = problems.load(line.params.problem), read_json(line.paths.report("evaluate"))
    first = report["metrics"][problem.headline]["value"]
    assert (first > 0.6) if problem.higher_is_better[problem.headline] else (first < 1)


def test_a_row_that_was_asked_gets_its_answer_whoever_is_asked_beside_it(line: Line) -> None:
    problem = problems.load(line.params.problem)
    answerer = open_answerer(read_release(line.paths.release))
    rows = problem.examples().select(problem.inputs)
    blank = pl.DataFrame([dict.fromkeys(problem.inputs, " ")], schema=rows.schema)
    given = answerer.answer(pl.concat([rows, blank, rows.reverse()]), batch_size=4)
    assert given["reason"].null_count() == 2 * len(rows)
    assert given["reason"][len(rows)].endswith("is empty")
    forth, back = given.head(len(rows)), given.tail(len(rows)).reverse()
    for name, kind in problem.answer_schema({"labels": []}).items():
        if not kind.is_float() and not kind.is_nested():
            assert forth[name].equals(back[name])


def test_the_release_answers_as_it_did_where_it_was_made(line: Line) -> None:
    runtime = load_runtime(line.paths.release, 2)
    assert differences(read_json(line.paths.release / "golden.json"), runtime, runtime.problem) == []


@pytest.mark.long
def test_killed_on_the_way_and_begun_again_it_comes_to_the_same_weights(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.train import train
    from tasks.training import Journal

    params = line.params.train.model_copy(update={"checkpoint_steps": 5})
    places = [tmp_path / name for name in ("checkpoint", "train.json", "loss.json", "live", "work")]
    evaluated = Journal.on_evaluate

    def killed(self: Journal, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.epoch >= EPOCHS / 2:
            raise KeyboardInterrupt
        evaluated(self, args, state, control, **others)

    def learn() -> None:
        problem = problems.load(line.params.problem)
        train(
            line.paths.tokens,
            *places,
            params=params,
            base=line.params.base,
            threads=line.params.threads,
            problem=problem,
        )

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "on_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            learn()
    assert list(tmp_path.glob("work/*/checkpoint-*/whole.json"))
    assert not (tmp_path / "checkpoint").exists()
    learn()
    again, first = (folder / "model.safetensors" for folder in (tmp_path / "checkpoint", line.paths.checkpoint))
    assert sha256_of(again) == sha256_of(first)


def test_what_it_was_asked_is_watched_and_its_reference_holds_no_text(line: Line, tmp_path: Path) -> None:
    from flows.params import load_flows

    problem = problems.load(line.params.problem)
    subject = open_subject(read_release(line.paths.release))
    texts = {text for name in problem.texts for text in problem.examples()[name]}
    assert not texts & {value for column in subject.held_out.select(pl.col(pl.String)) for value in column}
    rows = pl.concat([problem.examples()] * 20).with_columns(
        id=pl.format("a{}", pl.int_range(20 * len(problem.examples())))
    )
    outputs = subject.runtime.outputs(rows)
    answers = problem.answer(rows, outputs, subject.runtime.signature, subject.runtime.calibration)
    asked = [name for name in problem.inputs if name not in answers.columns]
    served = pl.concat([rows.select("id", *asked), answers], how="horizontal").with_columns(
        seq=pl.int_range(len(rows)), at_us=pl.lit(0), latency_ms=pl.lit(5.0), has_embedding=pl.lit(value=True)
    )
    # As the journal has a text that was not drawn.
    served = served.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in subject.answer.items() if name not in served.columns
    )
    embedding_ND = outputs["pooled_embedding"].astype(np.float32)
    watching = load_flows(REPOSITORY / "params.yaml").models["reviews"].monitor.model_copy(update={"resamples": 200})
    judged = judge_window(subject, served, lambda numbers: embedding_ND[list(numbers)], watching, 0, tmp_path)
    assert judged.record["rows"] == len(rows)
    assert judged.record["verdict"] == "ok"
    assert {test["family"] for test in judged.record["tests"]} >= {"inputs", "answers", "embedding"}


def test_rows_longer_than_the_model_are_described_one_by_one(line: Line) -> None:
    runtime, problem = load_runtime(line.paths.release, 2), problems.load(line.params.problem)
    long = [pl.concat_str([pl.col(name)] * 300, separator=" ") for name in problem.texts if name in problem.inputs]
    rows = problem.examples().with_columns(long)
    rows = rows[[0, 0, *range(1, len(rows))]]  # a row that was drawn twice, as those of a resampled window are
    described = describe(rows, runtime)
    assert described["id"].to_list() == rows["id"].to_list()
    for place, row in enumerate(described.iter_rows()):
        assert describe(rows[[place]], runtime).row(0) == row
    if len(runtime.encoded(rows)) > len(rows):  # what becomes several inputs is counted in all of them
        assert described["tokens_per_word"].min() > 0.5
    else:
        assert described["truncated"].all()


def test_it_is_asked_from_a_terminal_and_a_file(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = problems.load(line.params.problem)
    monkeypatch.chdir(line.paths.root)
    rows = problem.examples().select(problem.inputs)
    texts = [row[0] if len(row) == 1 else json.dumps(dict(zip(rows.columns, row, strict=True))) for row in rows.rows()]
    predict("mine", texts, as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == len(texts)
    rows.write_parquet("rows.parquet")
    score("mine", Path("rows.parquet"), Path("scored.parquet"), force=False)
    assert set(problem.answer_schema({"labels": []})) <= set(pl.read_parquet("scored.parquet").columns)


@pytest.fixture(scope="module")
def server(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The release in use, with the page for people."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(line.paths.release, root / "one")
    write_params(Line(Paths("mine", root), line.params))
    use(root, read_release(root / "one"), "mine")
    git(root, "init", "-q", "-b", "main")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "all")
    with running(root, also=lambda app: add_portal(app, root, app.state.service)) as server:
        yield server


def test_the_server_gives_the_same_answers_by_every_way_to_ask_and_takes_labels(line: Line, server: Running) -> None:
    problem = problems.load(line.params.problem)
    rows = problem.examples()
    answers = server.predict(rows.select(problem.inputs).to_dicts(), "mine").json()
    tensors = [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": datatype_of(problem.columns[name]),
            "data": rows[name].to_list(),
        }
        for name in problem.inputs
    ]
    inferred = server.client.post("/v2/models/mine/infer", json={"inputs": tensors}).json()
    outputs = {output["name"]: output for output in inferred["outputs"]}
    alone = open_answerer(read_release(line.paths.release)).answer(rows, batch_size=8)
    for name, kind in problem.answer_schema({"labels": []}).items():
        given = [answer[name] for answer in answers]
        assert outputs[name]["shape"] == list(np.shape(given))
        if not kind.is_float() and not kind.is_nested():
            assert given == outputs[name]["data"] == alone[name].to_list()
    targets = targets_of(problem.columns, problem.inputs)
    if targets:
        said = rows.select(list(targets)).to_dicts()
        labels = [{"id": answer["id"], **label} for answer, label in zip(answers, said, strict=True)]
        told = server.client.post("/models/mine/feedback", json=labels).json()
        assert told == {"received": len(rows), "new": len(rows)}


def test_the_page_shows_an_answer_and_says_where_words_cannot_be_weighed(line: Line, server: Running) -> None:
    problem = problems.load(line.params.problem)
    row = problem.examples().select(problem.inputs).row(0, named=True)
    page = server.client.post("/reports/", data={"model": "mine", **row}).text
    assert "mill trace" in page
    assert (NOT_EXPLAINED in page) == (not can_explain(problem))
    if problem.separator:
        answer = server.predict(row, "mine").json()
        assert f"<strong>{answer['labels']}</strong>" in page
        assert page.count('<span class="share"') == len(answer["probabilities"])


def test_words_are_weighed_only_where_an_answer_is_one_of_several_labels(line: Line) -> None:
    problem = problems.load(line.params.problem)
    row, answerer = problem.examples().row(0, named=True), open_answerer(read_release(line.paths.release))
    if can_explain(problem):
        assert word_effects(answerer, row)
        return
    with pytest.raises(DataError, match="is computed where a text gets just one of several labels"):
        word_effects(answerer, row)


def test_what_writes_goes_on_with_a_prompt_and_what_does_not_says_so(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(line.paths.root)
    problem = problems.load(line.params.problem)
    if not problem.writes:
        with pytest.raises(ParamsError, match=r"writes no text. Ask it with mill predict mine"):
            generate("mine", "The sun", Sampling())
        return
    for prompt in ("The sun rises in", "人工智能是未来科技"):
        generate("mine", prompt, Sampling(max_new_tokens=20))
        said = capsys.readouterr()
        shown = "" if problem.reads_whole else prompt  # a translation stands alone
        assert said.out.startswith(shown)
        assert len(said.out) > len(shown) + 1
        assert said.err.rstrip().endswith("tokens")
    with pytest.raises(DataError, match="The prompt is empty"):
        generate("mine", " ", Sampling())
    with pytest.raises(DataError, match="would not fit"):
        generate("mine", "The sun rises " * 50, Sampling())
