"""Encoder-decoders: pairs that are whole, the cache, one reading for one text, how near a translation is, its use."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import sacrebleu
import torch
from tokenizers import Tokenizer

from flows.generate import generate
from flows.predict import predict
from flows.recipes import add
from tasks.columns import mapped
from tasks.compression import COMPRESSIONS
from tasks.deploy import deploy
from tasks.errors import DataError, ParamsError
from tasks.export import to_onnx
from tasks.params import CollectFiles, Scratch, TrainedTokenizer, load_model
from tasks.paths import Paths
from tasks.problems import _translations
from tasks.problems._encoder_decoder import START, encoder_decoder_with_cache
from tasks.problems._text import ends, specials
from tasks.problems.translation import PROBLEM
from tasks.release import read_release
from tasks.runtime import load_runtime, open_session, run
from tasks.shards import write_json
from tasks.tokenize import train_tokenizer
from tasks.writing import Sampling, sources_of, write
from tests.conftest import REPOSITORY, Line, walk, write_params
from tests.model_server import Running, running, use

MAX_TOKENS = 48
PAIRS = PROBLEM.examples()
TEXTS = PAIRS["text"].to_list()
BASE = Scratch(architecture="marian", hidden_size=32, layers=2, heads=4, feed_forward_size=64, max_positions=MAX_TOKENS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [*TEXTS, *PAIRS["translation"]]
    return train_tokenizer(TrainedTokenizer(algorithm="bpe", vocabulary=400), texts).backend_tokenizer


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights of another architecture, whose decoder knows places by their distance alone."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(2)
    config = T5Config(
        vocab_size=400, d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, decoder_start_token_id=0, pad_token_id=0
    )
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def encoder_decoder(base: str | Scratch) -> Any:
    torch.manual_seed(1)
    model = PROBLEM.build(base, 400, {}, dropout=0.0, attention="eager").eval()
    if isinstance(base, Scratch):
        with torch.no_grad():  # as they are drawn, all tokens are about as likely
            for weights in model.parameters():
                weights.mul_(4)
    return model


@pytest.fixture(scope="module", params=["marian", pytest.param("t5", marks=pytest.mark.long)])
def traced(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, t5: str, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A model and its file."""
    model = encoder_decoder(BASE if request.param == "marian" else t5)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    to_onnx(PROBLEM, model, encoded(tokenizer, PAIRS.head(2)), 0, path)
    return model, path


@pytest.fixture(scope="module")
def exported(traced: Any) -> Any:
    """A model and its session."""
    model, path = traced
    return model, open_session(path, 2)


def encoded(tokenizer: Tokenizer, rows: pl.DataFrame, *, taught: bool = False) -> pl.DataFrame:
    return PROBLEM.encode(rows, tokenizer, {} if taught else None, MAX_TOKENS)


def written(session: Any, tokenizer: Tokenizer, texts: list[str], sampling: Sampling) -> list[list[int]]:
    _, last = ends(tokenizer)
    prompts = sources_of(texts, tokenizer, MAX_TOKENS, sampling.max_new_tokens, cut=False)
    return write(session, prompts, last, sampling, never=[one for one in specials(tokenizer) if one != last])


@pytest.mark.parametrize(("compression", "tolerance"), [("int8", 0.1), ("int8_blocks", 0.02)])
def test_compressed_it_is_about_as_surprised_by_the_right_translation(
    traced: Any, tokenizer: Tokenizer, tmp_path: Path, compression: str, tolerance: float
) -> None:
    rows = encoded(tokenizer, PAIRS, taught=True).drop(PROBLEM.targets)
    COMPRESSIONS[compression](traced[1], tmp_path / "small.onnx")
    expected, found = (
        run(open_session(path, 1), PROBLEM, rows, 0, 4)["nll"] for path in (traced[1], tmp_path / "small.onnx")
    )
    assert 0 < np.abs(found / expected - 1).max() < tolerance


def test_the_decoder_learns_to_say_the_translation_and_then_to_end(tokenizer: Tokenizer) -> None:
    rows = encoded(tokenizer, PAIRS, taught=True)
    _, last = ends(tokenizer)
    for text, labels, tokens in zip(PAIRS["translation"], rows["labels"], rows["written"], strict=True):
        assert tokenizer.decode(labels.to_list()) == text
        assert labels[-1] == last
        assert tokens.to_list() == [START, *labels]
    batch = PROBLEM.batch(rows, 0)
    assert (batch["labels"] >= 0).sum(axis=1).tolist() == rows["labels"].list.len().to_list()
    assert set(batch["labels"][batch["labels"] < 0].tolist()) == {-100}
    request = encoded(tokenizer, PAIRS.select("id", "text"))
    assert request["written"].to_list() == [[START]] * len(PAIRS)


@pytest.mark.parametrize("column", ["text", "translation"])
def test_a_pair_that_is_longer_than_the_model_is_cut_and_says_so(tokenizer: Tokenizer, column: str) -> None:
    long = pl.concat_str([pl.col(column)] * 20, separator=" ")
    rows = PAIRS.with_columns(pl.when(pl.col("id") == "e2").then(long).otherwise(column).alias(column))
    taught = encoded(tokenizer, rows, taught=True)
    assert taught.filter("truncated")["id"].to_list() == ["e2"]
    assert taught["input_ids"].list.len().max() <= MAX_TOKENS
    assert taught["labels"].list.len().max() <= MAX_TOKENS


def test_a_pair_without_a_translation_goes_and_says_why() -> None:
    rows = PAIRS.head(4).with_columns(translation=pl.Series(["", " \n", None, "好"]))
    assert PROBLEM.realign(rows, rows)[1].to_list() == ["no_translation"] * 3 + [None]


@pytest.mark.parametrize("architecture", ["bart", "marian", "pegasus", "t5"])
def test_what_is_surprising_is_what_transformers_calls_the_loss(
    tokenizer: Tokenizer, t5: str, architecture: str
) -> None:
    model = encoder_decoder(t5 if architecture == "t5" else BASE.model_copy(update={"architecture": architecture}))
    rows = encoded(tokenizer, PAIRS, taught=True)
    batch = {name: torch.from_numpy(array) for name, array in PROBLEM.batch(rows.drop("labels"), 0).items()}
    with torch.inference_mode():
        nll, num, *_ = encoder_decoder_with_cache(model)(**batch)
        for row, (ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
            loss = model(input_ids=torch.tensor([ids.to_list()]), labels=torch.tensor([labels.to_list()])).loss
            assert float(nll[row]) == pytest.approx(float(loss) * len(labels), rel=1e-4)
            assert int(num[row]) == len(labels)


def test_an_architecture_that_does_not_translate_is_refused_by_name() -> None:
    with pytest.raises(ParamsError, match=r"built from scratch here\. Did you mean 'marian'"):
        encoder_decoder(BASE.model_copy(update={"architecture": "marain"}))


def test_the_cache_writes_what_transformers_writes(exported: Any, tokenizer: Tokenizer) -> None:
    model, session = exported
    _, last = ends(tokenizer)
    never = [[token] for token in specials(tokenizer) if token != last]
    for text in TEXTS:
        (prompt,) = sources_of([text], tokenizer, MAX_TOKENS, 16, cut=False)
        for use_cache in (True, False):
            expected = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=16,
                min_new_tokens=1,
                do_sample=False,
                use_cache=use_cache,
                eos_token_id=last,
                pad_token_id=0,
                bad_words_ids=never,
            )[0, 1:].tolist()
            found = written(session, tokenizer, [text], Sampling(max_new_tokens=16))
            assert found == [[token for token in expected if token != last]]


def test_a_text_is_read_once_however_long_its_translation_is(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    num_read = []

    class Seen:
        def get_inputs(self) -> Any:
            return session.get_inputs()

        def run_with_ort_values(self, names: Any, feed: Any) -> Any:
            num_read.append(feed["input_ids"].shape()[1])
            return session.run_with_ort_values(names, feed)

    (tokens,) = written(Seen(), tokenizer, TEXTS[:1], Sampling(max_new_tokens=8))
    assert len(num_read) == min(len(tokens) + 1, 8)
    assert num_read[0] > 8
    assert set(num_read[1:]) <= {0}


def test_texts_side_by_side_are_translated_as_each_alone(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    alone = [written(session, tokenizer, [text], Sampling(12))[0] for text in TEXTS]
    assert written(session, tokenizer, TEXTS, Sampling(12)) == alone
    assert len({tuple(tokens) for tokens in alone}) > 1


def test_a_translation_is_as_likely_whoever_is_beside_it(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    rows = encoded(tokenizer, PAIRS)
    together = run(session, PROBLEM, rows, 0, 64)
    for place in range(len(rows)):
        alone = run(session, PROBLEM, rows[[place]], 0, 64)
        assert alone["nll"][0] == pytest.approx(together["nll"][place], rel=1e-4)
        assert alone["choices"][0] == together["choices"][place]


def test_chance_is_the_same_for_one_seed_and_narrows_to_the_likeliest(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    greedy = written(session, tokenizer, TEXTS[:1], Sampling(8))
    assert written(session, tokenizer, TEXTS[:1], Sampling(8, temperature=1.0, top_k=1)) == greedy
    assert written(session, tokenizer, TEXTS[:1], Sampling(8, temperature=1.0, top_p=1e-9)) == greedy
    drawn = written(session, tokenizer, TEXTS[:1], Sampling(8, temperature=2.0, seed=3))
    assert written(session, tokenizer, TEXTS[:1], Sampling(8, temperature=2.0, seed=3)) == drawn
    many = Counter(map(tuple, written(session, tokenizer, TEXTS[:1] * 50, Sampling(8, temperature=2.0))))
    assert len(many) > 10


def test_an_answer_is_another_one_where_any_of_its_tokens_would_be() -> None:
    reference = {"nll": np.array([2.0, 4.0]), "num_tokens": np.array([2, 4]), "choices": np.array([7, 9])}
    other = {**reference, "nll": np.array([2.0, 8.0]), "choices": np.array([7, 8])}
    assert PROBLEM.compare(reference, other) == (pytest.approx(np.exp(-1) - np.exp(-2)), 0.5)


@pytest.mark.parametrize(("words", "column"), [("zh", "translation"), ("13a", "text")])
def test_bleu_and_chrf_under_any_weights_are_sacrebleus(words: str, column: str) -> None:
    right = PAIRS[column].to_list() * 4
    given = [text[: 3 + place % 9] + right[place - 1][place % 5 :] for place, text in enumerate(right)]
    weights_RN = np.random.default_rng(1).multinomial(len(right), np.full(len(right), 1 / len(right)), size=5)
    found = _translations.measure(given, right, words, weights_RN.astype(np.float64))
    for resample, weights_N in enumerate(weights_RN):
        drawn = np.repeat(np.arange(len(right)), weights_N)
        hypotheses, references = [given[row] for row in drawn], [[right[row] for row in drawn]]
        bleu = sacrebleu.corpus_bleu(hypotheses, references, tokenize=words, force=True).score
        assert found["bleu"][resample] == pytest.approx(bleu)
        assert found["chrf"][resample] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, references).score)
    expected = [sacrebleu.sentence_chrf(*pair).score for pair in zip(given, [[one] for one in right], strict=True)]
    assert _translations.chrf_of_rows(given, right, words) == pytest.approx(expected)
    assert np.isnan(_translations.measure(given, right, words, np.zeros((1, len(right))))["chrf"]).all()


def test_words_are_cut_as_the_language_of_the_translations_has_them() -> None:
    def cut(*texts: str) -> str:
        return _translations.cut_into_words(pl.Series(texts, dtype=pl.String))

    assert cut(*PAIRS["translation"]) == "zh"
    assert cut("打开 LibreOffice 对话框。") == "13a", "more of its letters are Latin"
    assert cut("太陽は東から昇る。") == "char"
    assert cut("ดวงอาทิตย์ขึ้น") == "char"
    assert cut(*TEXTS) == cut("Die Sonne geht auf.") == cut("") == "13a"


def test_repetition_counts_characters_where_there_are_no_spaces() -> None:
    assert _translations.repetition("点击图标点击图标") == pytest.approx(1 / 5)
    assert _translations.repetition("Click the Save icon. Click the Save icon.") == pytest.approx(2 / 7)
    assert _translations.repetition("点击图标") == _translations.repetition("") == 0.0


def test_a_baseline_gives_the_translation_of_the_text_that_is_most_like_it() -> None:
    asked = pl.DataFrame({"id": ["a", "b"], "text": ["The river flows.", "Fish have fins!"], "translation": ["x", "y"]})
    given = PROBLEM.baselines(PAIRS, asked, PROBLEM.signature(PAIRS), 1)
    known = dict(zip(PAIRS["text"], PAIRS["translation"], strict=True))
    assert given["nearest_text"]["translation"].to_list() == [
        known["The river flows down to the sea."],
        known["Birds have wings and fish have fins."],
    ]
    assert given["untranslated"]["translation"].equals(asked["text"], check_names=False)


def test_the_recipe_keeps_what_stands_on_one_page_together(root: Path) -> None:
    params = load_model("tiny", root / "params.yaml")
    assert isinstance(params.collect, CollectFiles)
    shipped = pl.read_parquet(REPOSITORY / params.collect.path)
    rows = mapped(shipped, params.collect, PROBLEM, params.collect.path, 1)
    assert rows["page"].n_unique() == 1802
    assert rows["page"].equals(rows["id"].str.replace("#.*", ""), check_names=False)
    assert params.clean.split.by == "group"
    assert params.clean.split.column == "page"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release that learned next to nothing."""
    root = tmp_path_factory.mktemp("translates")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, root)
    shutil.copytree(REPOSITORY / "recipes", root / "recipes")
    add("tiny", "translation", root)
    params = load_model("tiny", root / "params.yaml")
    tokenizer = TrainedTokenizer(algorithm="bpe", vocabulary=400)
    changes: dict[str, Any] = {
        "base": BASE,
        "tokenize": params.tokenize.model_copy(update={"tokenizer": tokenizer, "max_tokens": MAX_TOKENS}),
        "train": params.train.model_copy(update={"epochs": 2, "batch_size": 8, "dropout": 0.1, "checkpoint_steps": 2}),
        "export": params.export.model_copy(update={"max_probability_difference": 0.3, "max_changed_answers": 1.0}),
        "deploy": params.deploy.model_copy(update={"floors": {}, "must_beat_baselines": False}),
    }
    line = Line(Paths("tiny", root), params.model_copy(update=changes))
    rows = pl.concat([PAIRS] * 8).with_columns(
        id=pl.format("r{}", pl.int_range(8 * len(PAIRS))),
        split=pl.Series([split for split in ("train", "train", "validation", "test") * 2 for _ in range(len(PAIRS))]),
    )
    walk(line, rows)
    write_json(line.paths.report("validate"), {"rows": {"collected": len(rows), "valid": len(rows), "quarantined": 0}})
    tally = {"rows_in": len(rows), "rows_kept": len(rows), "dropped": {}, "redacted": {}}
    write_json(line.paths.report("clean"), tally)
    shutil.copy(root / "params.yaml", root / "recipe.yaml")
    write_params(line)
    deploy(line.paths, line.paths.release, line.paths.report("deploy"), params=line.params, problem=PROBLEM)
    shutil.copy(root / "recipe.yaml", root / "params.yaml")
    use(root, read_release(line.paths.release))
    return root


def test_a_release_is_compressed_and_says_what_that_cost(root: Path) -> None:
    found = json.loads((root / "reports/tiny/export.json").read_text())
    assert found["released"] == "int8"
    assert set(found["variants"]["int8"]) == {"bytes", "changed_answers", "perplexity", "probability_difference"}
    assert load_runtime(root / "models/tiny/release", 1).writer.translates


def test_a_text_that_is_longer_than_the_model_has_a_reason_instead_of_half_a_translation(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    predict("tiny", [TEXTS[0], "The sun rises. " * 40], as_json=True)
    said = capsys.readouterr()
    short, long = map(json.loads, said.out.splitlines())
    assert short["translation"]
    assert 0 < short["token_probability"] <= 1
    assert long["translation"] is None
    assert "TEXT 2: text is longer than the 48 tokens that the model reads, so there is no answer" in said.err
    with pytest.raises(DataError, match="half a translation is none"):
        generate("tiny", "The sun rises. " * 40, Sampling(8))
    with pytest.raises(DataError, match="64 new tokens would not fit into the 47"):
        generate("tiny", TEXTS[0], Sampling(64))


def test_a_terminal_shows_the_whole_translation_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    predict("tiny", TEXTS[:1], as_json=True)
    translation = json.loads(capsys.readouterr().out)["translation"]
    generate("tiny", TEXTS[0], Sampling(64), to_its_end=True)
    said = capsys.readouterr()
    assert said.out == f"{translation}\n"
    assert said.err.rstrip().endswith("tokens")


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    with running(root, threads=1) as server:
        yield server


def test_the_server_translates_by_each_of_its_ways(server: Running) -> None:
    plain = server.predict({"text": TEXTS[0]}).json()
    assert plain["translation"]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXTS[0]]}
    inferred = server.client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    outputs = {one["name"]: one["data"][0] for one in inferred["outputs"]}
    assert outputs["translation"] == plain["translation"]
    ask = {"model": "tiny", "prompt": TEXTS[0], "temperature": 0}
    whole = server.client.post("/v1/completions", json=ask).json()
    assert whole["choices"][0]["text"] == plain["translation"]
    assert whole["usage"]["completion_tokens"] <= MAX_TOKENS
    kept = server.journal.find(whole["id"])
    assert kept is not None
    assert kept["answer"]["translation"] == plain["translation"]
    assert kept["answer"]["token_probability"] == pytest.approx(plain["token_probability"], abs=1e-3)


def test_a_translation_streams_piece_by_piece(server: Running) -> None:
    ask = {"model": "tiny", "prompt": TEXTS[0], "temperature": 1.5, "seed": 1, "max_tokens": 20}
    reply = server.client.post("/v1/completions", json={**ask, "stream": True}).text
    events = [json.loads(line[6:]) for line in reply.splitlines() if line.startswith("data: {")]
    whole = server.client.post("/v1/completions", json=ask).json()
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert len(events) > 3


def test_the_server_refuses_what_it_cannot_translate(server: Running) -> None:
    long = "The sun rises. " * 40
    for content in ({"text": long}, {"text": " "}):
        assert server.predict(content).status_code == 422
    first, second = server.predict([{"text": TEXTS[0]}, {"text": long}]).json()
    assert first["reason"] is None
    assert second["reason"] == "text is longer than the 48 tokens that the model reads"
    reply = server.client.post("/v1/completions", json={"model": "tiny", "prompt": long})
    assert reply.status_code == 422
    assert "longer than the 48 tokens" in reply.json()["error"]["message"]
    said = {"model": "tiny", "messages": [{"role": "user", "content": TEXTS[0]}]}
    reply = server.client.post("/v1/chat/completions", json=said)
    assert reply.status_code == 404
    assert "does not chat" in reply.json()["error"]["message"]


def test_who_knows_a_better_translation_says_so(server: Running) -> None:
    answer = server.predict({"text": TEXTS[0]}).json()
    label = {"id": answer["id"], "translation": PAIRS["translation"][0]}
    assert server.client.post("/models/tiny/feedback", json=label).json() == {"received": 1, "new": 1}
    empty = server.client.post("/models/tiny/feedback", json={"id": answer["id"]})
    assert empty.status_code == 422
