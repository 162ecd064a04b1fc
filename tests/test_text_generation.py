"""Decoders: windows that count each token once, packed rows, the cache, how the next token is drawn."""

import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer

from tasks.compression import COMPRESSIONS, _turn_weights
from tasks.errors import DataError, ParamsError
from tasks.export import to_onnx
from tasks.params import Scratch, TrainedTokenizer
from tasks.problems import _byte_ngram
from tasks.problems._decoder import KEPT, decoder_with_cache
from tasks.problems._text import ends
from tasks.problems.text_generation import PROBLEM
from tasks.runtime import load_runtime, open_session, run
from tasks.shards import write_json
from tasks.tokenize import train_tokenizer
from tasks.writing import Sampling, Speaker, prompts_of, write
from tests.conftest import TIDY

MAX_TOKENS = 32
TEXTS = PROBLEM.examples()["text"].to_list()
ARCHITECTURES = ("gpt2", "llama")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TrainedTokenizer(algorithm="bpe", vocabulary=400), TEXTS).backend_tokenizer


def decoder(architecture: str, vocabulary: int) -> Any:
    torch.manual_seed(1)
    base = Scratch(
        architecture=architecture, hidden_size=32, layers=2, heads=4, feed_forward_size=64, max_positions=MAX_TOKENS
    )
    model = PROBLEM.build(base, vocabulary, {}, dropout=0.0, attention="eager").eval()
    with torch.no_grad():  # as they are drawn, all tokens are about as likely
        for weights in model.parameters():
            weights.mul_(4)
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model and its session."""
    model = decoder(request.param, tokenizer.get_vocab_size())
    path = tmp_path_factory.mktemp("decoder") / "model.onnx"
    to_onnx(PROBLEM, model, encoded(tokenizer, TEXTS[:2]), 0, path)
    return model, open_session(path, 2)


def encoded(tokenizer: Tokenizer, texts: list[str], *, taught: bool = False, max_tokens: int = MAX_TOKENS) -> Any:
    rows = pl.DataFrame({"id": [f"r{number}" for number in range(len(texts))], "text": texts})
    return PROBLEM.encode(rows, tokenizer, {} if taught else None, max_tokens)


def test_of_a_long_text_each_token_is_counted_once_in_some_window_but_the_first(tokenizer: Tokenizer) -> None:
    text = " ".join(TEXTS * 3)
    first, last = ends(tokenizer)
    whole = [first, *tokenizer.encode(text, add_special_tokens=False).ids, last]
    windows = encoded(tokenizer, [text], taught=True)
    assert len(windows) > 3
    assert not windows["truncated"].any()
    counted = [
        token
        for ids, mask in windows.select("input_ids", "counted").iter_rows()
        for token, is_counted in zip(ids, mask, strict=True)
        if is_counted
    ]
    assert counted == whole[1:]
    assert windows["labels"].explode().filter(windows["labels"].explode() >= 0).to_list() == counted


def test_a_text_that_never_ends_is_read_as_far_as_sixty_four_windows_and_says_so(tokenizer: Tokenizer) -> None:
    windows = encoded(tokenizer, ["the sea " * 2000])
    assert len(windows) == 64
    assert windows["truncated"].all()


def test_the_bits_of_a_text_that_never_ends_are_those_of_the_bytes_that_were_read(tokenizer: Tokenizer) -> None:
    rows = pl.DataFrame({"id": ["long", "short"], "text": ["thé séa " * 2000, "thé séa"]})
    windows = PROBLEM.encode(rows, tokenizer, None, MAX_TOKENS)
    counted = windows.explode("input_ids", "counted").filter(pl.col("counted") == 1)
    ids = counted.filter(pl.col("id") == "long")["input_ids"].to_list()
    read = tokenizer.decode(ids).rstrip("\ufffd")
    assert rows["text"][0].startswith(read)
    assert len(read) < 8000, "half of it"
    num_read = windows["num_bytes"][0]
    assert 0 <= num_read - len(read.encode()) <= 1, "a character of two bytes may be cut in the middle"
    surprised = windows["counted"].list.sum().to_numpy() * np.log(2)  # a bit for each token
    width = np.zeros((len(windows), 1), np.float32)
    outputs = {"nll": surprised, "num_tokens": windows["counted"].list.sum().to_numpy(), "pooled_embedding": width}
    answers = PROBLEM.answer(rows, PROBLEM.gather(outputs, windows), {}, {})
    num_short = len(tokenizer.encode("thé séa", add_special_tokens=False).ids) + 1  # and the end
    assert answers["bits_per_byte"].to_list() == pytest.approx([len(ids) / num_read, num_short / 9], abs=1e-4)


def test_no_character_of_any_language_is_unknown(tokenizer: Tokenizer) -> None:
    texts = ["人工智能是未来科技发展的关键", "🙂🙃", "مرحبا"]
    for text, ids in zip(texts, encoded(tokenizer, texts, max_tokens=512)["input_ids"], strict=True):
        assert tokenizer.decode(ids.to_list()) == text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_surprising_is_what_transformers_calls_the_loss(tokenizer: Tokenizer, architecture: str) -> None:
    model = decoder(architecture, tokenizer.get_vocab_size())
    rows = encoded(tokenizer, TEXTS[:4])
    batch = {name: torch.from_numpy(array) for name, array in PROBLEM.batch(rows, 0).items()}
    with torch.inference_mode():
        nll, num, *_ = decoder_with_cache(model)(**batch)
        for row, ids in enumerate(rows["input_ids"]):
            alone = torch.tensor([ids.to_list()])
            expected = float(model(input_ids=alone, labels=alone).loss) * (len(ids) - 1)
            assert float(nll[row]) == pytest.approx(expected, rel=1e-4)
            assert int(num[row]) == len(ids) - 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_that_are_packed_into_one_row_do_not_see_each_other(tokenizer: Tokenizer, architecture: str) -> None:
    model = decoder(architecture, tokenizer.get_vocab_size())
    rows = encoded(tokenizer, TEXTS[:3], taught=True)
    packed = PROBLEM.packed(rows, int(rows["input_ids"].list.len().sum()), seed=1)
    assert len(packed) == 1
    batch = {name: torch.from_numpy(array) for name, array in PROBLEM.batch(packed, 0).items()}
    with torch.inference_mode():
        together = model(**batch).logits[0]
        for start, end in itertools.pairwise([*np.flatnonzero(batch["position_ids"][0] == 0), len(together)]):
            alone = model(input_ids=batch["input_ids"][:, start:end]).logits[0]
            torch.testing.assert_close(together[start:end], alone, atol=1e-4, rtol=1e-4)


def test_packed_rows_are_full_and_hold_every_token_in_its_order(tokenizer: Tokenizer) -> None:
    rows = encoded(tokenizer, [" ".join(TEXTS * 2), *TEXTS], taught=True)
    packed = PROBLEM.packed(rows, MAX_TOKENS, seed=1)
    assert packed["input_ids"].list.len().unique().to_list() == [MAX_TOKENS]
    assert len(packed) == rows["input_ids"].list.len().sum() // MAX_TOKENS
    learned = Counter(packed["input_ids"].explode().to_list())
    assert learned <= Counter(rows["input_ids"].explode().to_list())
    assert packed["position_ids"].list.first().unique().to_list() == [0]


def test_the_cache_writes_what_transformers_writes(exported: Any, tokenizer: Tokenizer) -> None:
    model, session = exported
    _, last = ends(tokenizer)
    for text in TEXTS[:3]:
        (prompt,) = prompts_of([text[:12]], tokenizer, MAX_TOKENS, 16, cut=False)
        expected = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=16,
            min_new_tokens=1,
            do_sample=False,
            use_cache=True,
            eos_token_id=last,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert write(session, [prompt], last, Sampling(max_new_tokens=16)) == [
            [token for token in expected if token != last]
        ]


def test_prompts_side_by_side_write_what_each_writes_alone(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    _, last = ends(tokenizer)
    prompts = prompts_of([text[:size] for size, text in enumerate(TEXTS, 3)], tokenizer, MAX_TOKENS, 8, cut=True)
    alone = [write(session, [prompt], last, Sampling(max_new_tokens=8))[0] for prompt in prompts]
    heard: list[tuple[int, int]] = []
    together = write(session, prompts, last, Sampling(max_new_tokens=8), lambda row, token: heard.append((row, token)))
    assert together == alone
    assert [[token for row, token in heard if row == place] for place in range(len(prompts))] == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_compressed_decoder_has_no_product_with_a_weight_in_full_precision(
    tokenizer: Tokenizer, architecture: str, tmp_path: Path
) -> None:
    model = decoder(architecture, tokenizer.get_vocab_size())
    to_onnx(PROBLEM, model, encoded(tokenizer, TEXTS[:2]), 0, tmp_path / "fp32.onnx")
    for name, compress in COMPRESSIONS.items():
        compress(tmp_path / "fp32.onnx", tmp_path / f"{name}.onnx")
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        assert len(products) == 2 * model.config.num_hidden_layers, f"{name}: those of attention alone"
        assert not any(is_weight(given, graph) for node in products for given in node.input), name


def is_weight(name: str, graph: Any) -> bool:
    """Whether this is stored, or made of nothing but what is stored."""
    node = next((node for node in graph.node if name in node.output), None)
    if node is None:
        return name in {weight.name for weight in graph.initializer}
    return all(is_weight(given, graph) for given in node.input)


def test_only_a_weight_that_was_turned_and_that_nobody_reads_as_it_was_is_left_out() -> None:
    from onnx import TensorProto, helper, numpy_helper

    names = ("turned", "read_as_well", "given_back", "unread")
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", [name], [f"{name}.T"], name=name, perm=[1, 0])
            for name in ("turned", "read_as_well", "given_back")
        ]
        + [
            helper.make_node("MatMul", ["x", "turned.T"], ["y"]),
            helper.make_node("MatMul", ["y", "read_as_well"], ["z"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("z", "given_back")],
        [numpy_helper.from_array(np.float32([[1, 2], [3, 4]]), name) for name in names],
    )
    _turn_weights(graph)
    stored = {weight.name: numpy_helper.to_array(weight).tolist() for weight in graph.initializer}
    assert set(stored) == {"turned.T", "read_as_well", "read_as_well.T", "given_back", "given_back.T", "unread"}
    assert stored["turned.T"] == [[1, 3], [2, 4]]
    assert [node.op_type for node in graph.node] == ["MatMul", "MatMul"]


def test_a_decoder_that_remembers_in_one_array_is_to_be_exported_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    to_onnx(PROBLEM, decoder("gpt2", tokenizer.get_vocab_size()), encoded(tokenizer, TEXTS[:2]), 0, path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    facts = {"problem": PROBLEM.name, "signature": {}, "tidy": TIDY, "calibration": {}, "pad_id": 0}
    write_json(tmp_path / "runtime.json", {**facts, "max_tokens": MAX_TOKENS})
    assert load_runtime(tmp_path, 1).problem is PROBLEM
    model = onnx.load(path)
    for place, given in enumerate(one for one in model.graph.input if one.name.startswith(KEPT)):
        for node in model.graph.node:
            node.input[:] = [f"past_{place}" if name == given.name else name for name in node.input]
        given.name = f"past_{place}"
    onnx.save(model, path)
    with pytest.raises(DataError, match=r"model\.onnx keeps .* Export it again: `mill run`"):
        load_runtime(tmp_path, 1)


def test_a_window_says_the_same_of_a_text_whoever_is_beside_it(exported: Any, tokenizer: Tokenizer) -> None:
    _, session = exported
    rows = encoded(tokenizer, TEXTS)
    together = run(session, PROBLEM, rows, 0, 64)
    for place in range(len(rows)):
        alone = run(session, PROBLEM, rows[[place]], 0, 64)
        assert alone["nll"][0] == pytest.approx(together["nll"][place], rel=1e-4)


def test_chance_is_as_the_model_has_it_and_the_same_for_one_seed(exported: Any, tokenizer: Tokenizer) -> None:
    model, session = exported
    _, last = ends(tokenizer)
    (prompt,) = prompts_of(["The sea"], tokenizer, MAX_TOKENS, 8, cut=False)
    greedy = write(session, [prompt], last, Sampling(8))
    assert write(session, [prompt], last, Sampling(8, temperature=1.0, top_k=1)) == greedy
    assert write(session, [prompt], last, Sampling(8, temperature=1.0, top_p=1e-9)) == greedy
    drawn = write(session, [prompt], last, Sampling(8, temperature=1.5, seed=3))
    assert write(session, [prompt], last, Sampling(8, temperature=1.5, seed=3)) == drawn
    many = write(session, [prompt] * 1000, last, Sampling(1, temperature=2.0, seed=1))
    firsts = Counter(token for (token,) in many)
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    logits = found.clone()
    logits[last] = -torch.inf
    expected = torch.softmax(logits.double() / 2, -1).numpy()
    for token, probability in enumerate(expected):
        assert abs(firsts[token] / 1000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 1000) + 0.002


def test_a_prompt_that_leaves_no_room_is_refused_or_loses_its_beginning(tokenizer: Tokenizer) -> None:
    texts = ["short", "the sea " * 40]
    with pytest.raises(DataError, match=r"Prompt 2 has .* tokens, and 8 more would not fit into the 32"):
        prompts_of(texts, tokenizer, MAX_TOKENS, 8, cut=False)
    short, long = prompts_of(texts, tokenizer, MAX_TOKENS, 8, cut=True)
    assert len(short) < len(long) == MAX_TOKENS - 8
    assert tokenizer.decode(long).endswith("the sea ")


def test_a_character_is_said_when_all_of_its_bytes_have_come(tokenizer: Tokenizer) -> None:
    pieces: list[str] = []
    speaker = Speaker(tokenizer, pieces.append)
    ids = tokenizer.encode("sea 🙂!", add_special_tokens=False).ids
    assert len(ids) > 5
    for token in ids:
        speaker.hear(token)
    speaker.end()
    assert "".join(pieces) == "sea 🙂!"
    assert "🙂" in pieces


def test_bytes_that_became_no_character_are_said_at_the_end(tokenizer: Tokenizer) -> None:
    pieces: list[str] = []
    speaker = Speaker(tokenizer, pieces.append)
    for token in tokenizer.encode("sea 🙂", add_special_tokens=False).ids[:-1]:
        speaker.hear(token)
    assert "".join(pieces) == "sea "
    speaker.end()
    assert set("".join(pieces).removeprefix("sea ")) == {"\ufffd"}


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from tokenizers import models

    with pytest.raises(ParamsError, match="no token for the end of a text"):
        ends(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize("name", ["<|endoftext|>", "</s>", "<|im_end|>", "<eos>", "<|end_of_text|>", "[SEP]"])
def test_a_tokenizer_that_only_names_its_end_begins_with_it_as_well(name: str) -> None:
    from tokenizers import models

    assert ends(Tokenizer(models.WordLevel({"a": 0, name: 1}, unk_token="a"))) == (1, 1)


def test_a_tokenizer_that_strikes_out_as_well_ends_with_its_end() -> None:
    from tokenizers import models

    assert ends(Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<eos>": 2}, unk_token="a"))) == (2, 2)


def slow_bits(train: list[str], text: str) -> float:
    """The formula, word for word."""
    learned = [[257] * 4 + list(one.encode()) + [256] for one in train]
    total = 0.0
    asked = [257] * 4 + list(text.encode()) + [256]
    for place in range(4, len(asked)):
        probability = 1 / 257
        for size in range(5):
            history = asked[place - size : place]
            following = Counter(
                one[at] for one in learned for at in range(4, len(one)) if one[at - size : at] == history
            )
            seen, kinds = following.total(), len(following)
            if seen:
                probability = (following[asked[place]] + kinds * probability) / (seen + kinds)
        total -= math.log2(probability)
    return total


def test_the_byte_5gram_is_its_formula() -> None:
    asked = ["The sun sets in the sea.", "", "人工", "zzz"]
    found = _byte_ngram.bits(TEXTS, asked)
    assert found.tolist() == pytest.approx([slow_bits(TEXTS, text) for text in asked])
    assert _byte_ngram.bits(TEXTS, TEXTS).sum() < 0.4 * _byte_ngram.bits(TEXTS[:1], TEXTS).sum()


def test_repetition_is_the_share_of_runs_of_four_words_that_were_there_before() -> None:
    answers = pl.DataFrame(
        {"continuation": ["a b c d a b c d", "a b c", "a b c d e"], "bits_per_byte": [1.0, 2.0, 3.0]},
        schema=PROBLEM.answer_schema({}),
    )
    rows = PROBLEM.examples().head(3)
    assert PROBLEM.score(rows, answers, {})["repetition"].to_list() == pytest.approx([1 / 5, 0.0, 0.0])
    measured = PROBLEM.measure(rows, answers, {}, np.ones((1, 3)), 5)
    sizes = rows["text"].str.len_bytes().to_numpy()
    assert measured["bits_per_byte"][0] == pytest.approx((sizes * [1, 2, 3]).sum() / sizes.sum())


def test_the_monitor_holds_prompts_against_beginnings_and_not_against_whole_texts() -> None:
    texts = ["word " * 100, "short", "人工智能" * 100, "unbroken" * 50, " " + "x" * 300]
    rows = pl.DataFrame(
        {"id": [f"{place}" for place in range(500)], "text": [texts[place % 5] for place in range(500)]}
    )
    found = PROBLEM.asked(rows)
    assert found["id"].equals(rows["id"])
    for whole, beginning in zip(rows["text"], found["text"], strict=True):
        assert whole.startswith(beginning)
        assert len(beginning.strip()) >= min(len(whole), 15)
        assert len(beginning) <= 200
    words = found.filter(pl.col("text").str.starts_with("word"))["text"]
    assert words.str.ends_with("word").all()
    assert words.str.len_chars().n_unique() > 25
    assert PROBLEM.asked(rows.reverse()).reverse().equals(found)


def slow_copied(written: str, train: list[str]) -> int:
    """The definition, word for word."""
    found = [re.findall(r"[一-龥]|[^\W一-龥]+", text.lower()) for text in [written, *train]]
    runs = {tuple(text[at:to]) for text in found[1:] for at in range(len(text)) for to in range(at + 1, len(text) + 1)}
    asked = found[0]
    pairs = [(at, to) for at in range(len(asked)) for to in range(at + 1, len(asked) + 1)]
    return max((to - at for at, to in pairs if tuple(asked[at:to]) in runs), default=0)


def test_what_is_copied_is_the_longest_run_of_words_that_stands_in_one_text_that_was_learned_from() -> None:
    written = [
        "and then the SUN rises, in the east! We saw it",
        "the river flows down to the sea. Water boils when",  # from two texts, one after the other in no one text
        "flows down to the sea birds have wings and",
        "是未来科技的关键",
        "xyzzy",
        "",
        "the the the the",
    ]
    answers = pl.DataFrame({"continuation": written, "bits_per_byte": [1.0] * len(written)})
    held = PROBLEM.against_train(answers, PROBLEM.examples())
    assert held["copied_words"].to_list() == [slow_copied(text, TEXTS) for text in written]
    assert held["copied_words"].to_list()[:6] == [6, 7, 5, 5, 0, 0]
    rows = pl.DataFrame({"id": [str(place) for place in range(len(written))], "text": written})
    assert PROBLEM.score(rows, held, {})["copied_words"].equals(held["copied_words"])
    weights_RN = np.array([[1.0] * 7, [1.0, 0, 0, 0, 0, 0, 0]])
    measured = PROBLEM.measure(rows, held, {}, weights_RN, 5)["copied_words"].tolist()
    assert measured == [held["copied_words"].mean(), 6]
    assert "copied_words" not in PROBLEM.measure(rows, answers, {}, weights_RN, 5)


def test_what_is_copied_is_found_in_random_texts_as_the_definition_has_it() -> None:
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(list("abc"), size=random.integers(0, 30))) for _ in range(40)]
    answers = pl.DataFrame({"continuation": texts[:15], "bits_per_byte": [1.0] * 15})
    held = PROBLEM.against_train(answers, pl.DataFrame({"text": texts[15:]}))
    assert held["copied_words"].to_list() == [slow_copied(text, texts[15:]) for text in texts[:15]]


def test_nothing_is_learned_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        PROBLEM.signature(PROBLEM.examples().head(0))
