"""The stage on real reviews: what stays, what goes and why, and that neither order, shards nor time change it."""

import random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import clean as stage
from tasks import problems
from tasks.clean import DROPPED, clean
from tasks.errors import DataError, OutOfSpace
from tasks.params import SplitByHash, SplitByTime, load_model
from tasks.shards import read_json, read_rows, read_shards, sha256_of, write_manifest, write_parquet
from tasks.splits import SPLITS
from tests.conftest import REPOSITORY

PROBLEM = problems.load("text_classification")
PARAMS = load_model("reviews", REPOSITORY / "params.yaml").clean.model_copy(update={"min_rows": 1})


class Run:
    """The stage over partitions of shards of rows, below a folder of its own."""

    def __init__(self, folder, *partitions, problem=PROBLEM, **changes):
        self.problem = problem
        self.valid, self.kept, self.tally = folder / "valid", folder / "clean", folder / "clean.json"
        self.valid.mkdir(parents=True)
        named = {
            f"p{number:05d}-{place:05d}.parquet": rows
            for number, partition in enumerate(partitions)
            for place, rows in enumerate(partition if isinstance(partition, list) else [partition])
        }
        shards = [write_parquet(self.valid / name, rows) for name, rows in named.items()]
        write_manifest(self.valid, shards, partitions[0][0].schema if named else {})
        self.params = PARAMS.model_copy(update=changes)

    def run(self):
        clean(self.valid, self.kept, self.tally, params=self.params, problem=self.problem)
        return self

    @property
    def rows(self):
        return read_rows(self.kept)

    @property
    def reasons(self):
        return dict(pl.read_parquet(self.kept / DROPPED).select("id", "reason").iter_rows())

    @property
    def counts(self):
        return read_json(self.tally)

    @property
    def bytes(self):
        return {path.name: sha256_of(path) for path in [*self.kept.iterdir(), self.tally]}


@pytest.fixture
def cleaned(tmp_path):
    """Run the stage over partitions and give what it wrote."""
    numbers = iter(range(1000))

    def run(*partitions, **changes):
        return Run(tmp_path / str(next(numbers)), *partitions, **changes).run()

    return run


@pytest.fixture(scope="session")
def valid(reviews):
    """599 reviews, no two of them alike, as validate leaves them."""
    return reviews.drop("split").unique("text", keep="first", maintain_order=True)


@pytest.fixture(scope="session")
def messy(valid):
    """Reviews, copies of a third of them with noise, exact copies, contradictions, and rows of no use."""
    chance = random.Random(1)
    long = valid.filter(pl.col("text").str.split(" ").list.len() >= 20)
    assert len(long) > 150

    def noisy(text):
        words = text.split()
        return " ".join(words[:-1]).upper() + "!" if chance.random() < 0.5 else f"<p>{text} indeed</p>"

    near = long.head(150).with_columns(pl.col("text").map_elements(noisy, pl.String), id=pl.col("id") + "-near")
    same = valid.sample(60, seed=1).with_columns(id=pl.col("id") + "-same", text=" " + pl.col("text") + "\n")
    other = {"negative": "positive", "positive": "negative"}
    torn = valid.sample(20, seed=2).with_columns(pl.col("label").replace(other), id=pl.col("id") + "-torn")
    odd = [("odd-short", "ok", "positive"), ("odd-long", "long " * 2000, "positive"), ("odd-null", None, "negative")]
    odd += [("odd-label", "what is this one?", None), ("odd-mail", "write to me@example.org today", "positive")]
    rows = pl.concat([valid, near, same, torn, pl.DataFrame(odd, schema=valid.schema, orient="row")])
    return rows.sample(fraction=1, shuffle=True, seed=3)


def noted(rows):
    return rows.select("id", "split").rows()


def test_every_row_is_kept_or_has_a_reason_and_the_tally_adds_up(cleaned, messy):
    run = cleaned(messy)
    counts = run.counts
    assert counts["rows_in"] == len(messy) == counts["rows_kept"] + sum(counts["dropped"].values())
    assert sorted(run.rows["id"].to_list() + list(run.reasons)) == sorted(messy["id"])
    assert counts["rows_kept"] == sum(split["rows"] for split in counts["splits"].values())
    assert all(split["rows"] == sum(split["labels"].values()) for split in counts["splits"].values())
    for reason, number in counts["dropped"].items():
        assert number == sum(given.split(":")[0] == reason for given in run.reasons.values())
    assert counts["conflicts"] == {"groups": 20, "rows": counts["dropped"]["conflicting_label"]}
    assert counts["redacted"]["email"] == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.none() | st.text(max_size=40) | st.sampled_from(["one and two", "a@x.org!"]), st.sampled_from("+-")
        )
    )
)
def test_the_tally_adds_up_for_any_text(tmp_path_factory, valid, texts):
    odd = [(f"odd-{number}", text, label) for number, (text, label) in enumerate(texts)]
    rows = pl.concat([valid.head(40), pl.DataFrame(odd, schema=valid.schema, orient="row")])
    run = Run(tmp_path_factory.mktemp("any"), rows).run()
    assert len(rows) == run.counts["rows_kept"] + sum(run.counts["dropped"].values())
    assert sorted(run.rows["id"].to_list() + list(run.reasons)) == sorted(rows["id"])


def test_neither_the_order_of_rows_nor_their_shards_change_a_byte(cleaned, messy):
    whole = cleaned(messy)
    shuffled = messy.sample(fraction=1, shuffle=True, seed=9)
    many = cleaned([shuffled.slice(start, 37) for start in range(0, len(messy), 37)])
    assert many.bytes == whole.bytes
    assert many.rows["id"].is_sorted()


def test_slices_of_a_few_rows_give_the_same_as_whole_shards(cleaned, messy, monkeypatch):
    whole = cleaned(messy)
    monkeypatch.setattr(stage, "_SLICE_BYTES", 2_000)
    monkeypatch.setattr(stage, "_ROWS_AT_A_TIME", 7)
    assert cleaned(messy).bytes == whole.bytes


def test_a_later_partition_never_moves_an_earlier_row(cleaned, messy):
    first, second, third = messy.head(300), messy.slice(300, 250), messy.slice(550)
    alone, more, all_three = cleaned(first), cleaned(first, second), cleaned(first, second, third)
    for before, after in ((alone, more), (more, all_three)):
        assert noted(after.rows)[: len(before.rows)] == noted(before.rows)
        assert before.reasons.items() <= after.reasons.items()
    # A test of nothing, if nothing were near, equal or contradictory across partitions.
    later = [reason.split(":")[0] for name, reason in all_three.reasons.items() if name not in set(first["id"])]
    assert {"near_duplicate_of", "duplicate_of", "conflicting_label_with"} <= set(later)


def test_rows_stand_in_the_order_partition_then_id(cleaned, valid):
    run = cleaned(valid.tail(300), valid.head(299))
    assert run.rows["id"].to_list() == sorted(valid.tail(300)["id"]) + sorted(valid.head(299)["id"])


def test_near_duplicates_never_straddle_a_split(cleaned, messy):
    run = cleaned(messy)
    assert run.counts["dropped"]["near_duplicate_of"] > 100
    shingles = {}
    for name, text, split in run.rows.select("id", "text", "split").iter_rows():
        words = text.lower().replace("!", "").replace(".", "").split()
        shingles[name] = split, {tuple(words[at : at + 3]) for at in range(max(len(words) - 2, 1))}
    across = [
        len(one & other) / len(one | other)
        for name, (split, one) in shingles.items()
        for other_name, (other_split, other) in shingles.items()
        if name < other_name and split != other_split
    ]
    # The threshold is 0.8, and the estimate of 128 permutations is a few hundredths off at times.
    assert max(across) < 0.9


def test_a_near_duplicate_names_a_row_that_stays(cleaned, messy):
    run = cleaned(messy)
    named = {reason.split(":")[1] for reason in run.reasons.values() if reason.startswith("near_duplicate_of:")}
    assert named <= set(run.rows["id"])


def test_without_near_duplicates_only_exact_ones_go(cleaned, messy):
    counts = cleaned(messy, near_duplicates=None).counts
    assert counts["dropped"]["near_duplicate_of"] == 0
    assert counts["dropped"]["duplicate_of"] > 0


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        (None, "positive", "no_text"),
        ("  \u200b ", "positive", "too_short"),
        ("ab", "positive", "too_short"),
        ("<b>ab</b>", "positive", "too_short"),
        ("word " * 1001, "positive", "too_long"),
        ("a fine film", None, "no_label"),
    ],
)
def test_a_row_of_no_use_says_why(cleaned, valid, text, label, reason):
    odd = pl.DataFrame([("odd", text, label)], schema=valid.schema, orient="row")
    run = cleaned(pl.concat([valid, odd]))
    assert run.reasons == {"odd": reason}
    assert pl.read_parquet(run.kept / DROPPED).rows() == [("odd", 0, reason)]


@pytest.mark.parametrize("label", ["mixed", "positive|mixed"], ids=["one label", "several"])
def test_what_no_row_of_the_train_split_teaches_is_held_against_nobody(cleaned, valid, label):
    rare = valid.tail(60).with_columns(label=pl.lit(label), id=pl.format("rare-{}", pl.int_range(60)))
    usual = valid.head(400)
    problem = problems.load("multilabel_classification") if "|" in label else PROBLEM
    named = {"label": "labels"} if "|" in label else {}
    drawn = cleaned(pl.concat([usual, rare]).rename(named), problem=problem).rows
    of = {split: drawn.filter(pl.col("split") == split, pl.col("id").str.starts_with("rare"))["id"] for split in SPLITS}
    assert all(len(ids) for ids in of.values())
    asked = rare.filter(pl.col("id").is_in(pl.concat([of["test"], of["validation"]]).implode()))
    run = cleaned(pl.concat([usual, asked]).rename(named), problem=problem)
    assert {id for id, reason in run.reasons.items() if reason == "unseen_label"} == set(asked["id"])
    assert run.counts["dropped"]["unseen_label"] == len(asked)
    assert not set(run.rows["id"]) & set(asked["id"])
    # A row that teaches it lets the others come back, and moves none.
    taught = rare.filter(pl.col("id") == of["train"][0])
    later = cleaned(pl.concat([usual, asked]).rename(named), taught.rename(named), problem=problem)
    assert later.counts["dropped"]["unseen_label"] == 0
    assert set(noted(run.rows)) < set(noted(later.rows))


def test_texts_are_written_normalised_and_redacted_and_compared_so(cleaned, valid):
    odd = pl.DataFrame(
        [
            ("x1", "Caf\u0065\u0301<br>by  bob@example.org,\tbob@example.org", "positive"),
            ("x2", "Café by al@example.org, al@example.org", "positive"),
        ],
        schema=valid.schema,
        orient="row",
    )
    run = cleaned(pl.concat([valid, odd]))
    assert run.rows.filter(pl.col("id") == "x1")["text"].item() == "Café by ⟨EMAIL_1⟩, ⟨EMAIL_1⟩"
    assert run.reasons == {"x2": "duplicate_of:x1"}
    assert run.counts["redacted"]["email"] == 4


def test_markup_stays_where_the_parameters_say_so(cleaned, valid):
    odd = pl.DataFrame([("x1", "a <b>bold</b> film", "positive")], schema=valid.schema, orient="row")
    run = cleaned(pl.concat([valid, odd]), strip_markup=False, redact=[])
    assert run.rows.filter(pl.col("id") == "x1")["text"].item() == "a <b>bold</b> film"
    assert run.counts["redacted"] == {}


def test_other_columns_come_along(cleaned, valid):
    rows = valid.with_columns(user=pl.int_range(pl.len()) % 30, image=pl.lit(b"\x89PNG"))
    split = SplitByHash(by="group", column="user", validation=0.2, test=0.3, seed=1)
    kept = cleaned(rows, split=split).rows
    assert kept.columns == ["id", "text", "label", "user", "image", "split"]
    assert kept.group_by("user").agg(pl.col("split").n_unique())["split"].max() == 1
    assert kept.drop("split", "text").equals(rows.sort("id").drop("text"))


def test_a_split_by_time_drops_rows_without_one(cleaned, valid):
    days = pl.Series("when", [f"2026-01-{1 + number % 30:02d}" for number in range(598)] + [None])
    split = SplitByTime(by="time", column="when", validation_from="2026-01-11", test_from="2026-01-21")
    run = cleaned(valid.with_columns(days), split=split)
    assert list(run.reasons.values()) == ["no_split_time"]
    assert run.rows.filter(pl.col("when") >= "2026-01-21")["split"].unique().to_list() == ["test"]


@pytest.mark.parametrize(
    "text",
    [
        "a null \0 byte",
        "🎬🍿 ❤️ 👩‍👩‍👧",
        "فيلم رائع جدا \u200fمؤثر",
        "سینمای می‌خواهم",
        "这部电影非常好看",
        "\U0010ffff\ufffd\ud7ff",
        "<" * 5000,
        "&" * 5000,
    ],
)
def test_strange_text_is_kept_and_read_back(cleaned, valid, text):
    odd = pl.DataFrame([("odd", text, "positive")], schema=valid.schema, orient="row")
    kept = cleaned(pl.concat([valid, odd])).rows.filter(pl.col("id") == "odd")["text"].item()
    assert kept == text.replace("\0 ", "")


def test_a_text_of_ten_megabytes_is_too_long_or_is_kept_whole(cleaned, valid):
    text = "<div>a fine film at 10.1.2.3 </div>" * 300_000
    odd = pl.DataFrame([("odd", text, "positive")], schema=valid.schema, orient="row")
    rows = pl.concat([valid, odd])
    assert cleaned(rows).reasons == {"odd": "too_long"}
    run = cleaned(rows, max_chars=20_000_000, redact=["email"])
    assert run.rows.filter(pl.col("id") == "odd")["text"].str.len_chars().item() > 7_000_000


def test_too_few_rows_are_refused_and_what_stood_before_still_stands(cleaned, valid):
    run = cleaned(valid)
    before = {name: digest for name, digest in run.bytes.items() if name != run.tally.name}
    run.params = run.params.model_copy(update={"min_rows": 600})
    with pytest.raises(DataError, match=r"599 usable rows of 599 \(dropped: none\); clean.min_rows asks for 600\."):
        run.run()
    assert {name: digest for name, digest in run.bytes.items() if name != run.tally.name} == before
    assert not list(run.kept.parent.glob(".unfinished-*"))


def test_too_few_rows_say_where_the_others_went(cleaned, messy):
    with pytest.raises(DataError, match=r"dropped: 1 no_text, 1 too_short, 1 too_long, 1 no_label, .* duplicate_of"):
        cleaned(messy, min_rows=100_000)


def test_an_empty_split_is_refused_by_name(cleaned, valid):
    split = SplitByHash(by="id", column=None, validation=0.0, test=0.2, seed=1)
    with pytest.raises(DataError, match=r"none of them is in the split validation\. Change clean\.split"):
        cleaned(valid, split=split)


def test_no_rows_at_all_are_too_few(cleaned, valid):
    with pytest.raises(DataError, match=r"0 usable rows of 0"):
        cleaned([valid.clear()])


def test_an_id_that_comes_twice_is_refused(cleaned, valid):
    with pytest.raises(DataError, match=r"1 ids stand for more than one row, 'movie-1' among them"):
        cleaned(valid, valid.head(1).with_columns(text=pl.lit("another film"), id=pl.lit("movie-1")))


def test_a_broken_shard_is_named(tmp_path, valid):
    run = Run(tmp_path, valid, valid.with_columns(id="again-" + pl.col("id")))
    path = read_shards(run.valid)[1].path
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"p00001-00000\.parquet is not a whole Parquet file"):
        run.run()
    assert not run.kept.exists()


def test_shards_with_other_columns_are_told_apart(cleaned, valid):
    with pytest.raises(
        DataError, match=r"p00001-00000\.parquet has the columns .*more \(Int32\); the shards before it"
    ):
        cleaned(valid, valid.with_columns(id="b" + pl.col("id"), more=pl.lit(1)))


def test_a_column_named_split_is_refused(cleaned, reviews):
    with pytest.raises(DataError, match=r"has a column 'split', which clean writes\. Give it another name"):
        cleaned(reviews)


def test_a_full_disk_is_noticed_before_the_work(tmp_path, valid, monkeypatch):
    monkeypatch.setattr(stage, "_SPACE_PER_ROW", 10**15)
    run = Run(tmp_path, valid)
    with pytest.raises(OutOfSpace, match="nothing has been written"):
        run.run()
    assert not run.tally.exists()
