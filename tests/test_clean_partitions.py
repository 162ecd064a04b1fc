"""Clean as data grows: what a later partition, another process or another kind of problem may change, and may not."""

import os
import random
import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.clean import DROPPED, clean
from tasks.problems.text_classification import TextClassification
from tests.conftest import REPOSITORY
from tests.test_clean import Run, noted
from tests.test_neighbours import jaccard

SCHEMA = {"id": pl.String, "text": pl.String, "label": pl.String}


@pytest.fixture(scope="module")
def forty(reviews):
    """40 reviews, no two of them alike: enough for every split."""
    return reviews.select(SCHEMA.keys()).unique("text", keep="first", maintain_order=True).head(40)


@pytest.fixture(scope="module")
def passages():
    """300 encyclopaedia passages of at least 100 words, labelled by turns."""
    rows = pl.read_parquet(REPOSITORY / "data/samples/passages.parquet").head(1500)
    long = rows.filter(pl.col("text").str.split(" ").list.len() >= 100).head(300)
    return long.with_columns(label=pl.Series(["one", "other"] * 150))


SENTENCE = "a film that begins as a farce and ends as a quiet and moving portrait of two people who cannot part"
ALIKE = st.sampled_from(
    [
        SENTENCE,
        SENTENCE.upper() + "!",
        # Each is near the one above it; the last is not near the first.
        SENTENCE.rsplit(" ", 1)[0],
        SENTENCE.rsplit(" ", 3)[0],
        SENTENCE.rsplit(" ", 6)[0],
        "good",
        "good ",
        "Good!",
        ":-)",
        None,
    ]
)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 99), ALIKE, st.sampled_from(["negative", "positive", None])),
    max_size=25,
    unique_by=lambda row: row[1],
)


@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(0, 99))
def test_whatever_comes_later_moves_nothing_and_order_and_shards_do_not_matter(tmp_path_factory, forty, rows, seed):
    folder = tmp_path_factory.mktemp("grown")
    odd = [[(f"odd-{key:02}", text, label) for of, key, text, label in rows if of == number] for number in range(3)]
    drawn = [pl.DataFrame(some, SCHEMA, orient="row") for some in odd]
    partitions = [pl.concat([forty, drawn[0]]), *drawn[1:]]
    shuffled = [rows.sample(fraction=1, shuffle=True, seed=seed) for rows in partitions]
    whole = Run(folder / "whole", *partitions).run()
    sharded = Run(folder / "sharded", *([rows.head(5), rows.slice(5)] for rows in shuffled)).run()
    assert sharded.bytes == whole.bytes
    for number in (1, 2):
        before = Run(folder / str(number), *partitions[:number]).run()
        assert noted(whole.rows)[: len(before.rows)] == noted(before.rows)
        assert before.reasons.items() <= whole.reasons.items()
    place = {name: (number, name) for number, rows in enumerate(partitions) for name in rows["id"]}
    stays = set(whole.rows["id"])
    for name, (kind, _, other) in ((name, reason.partition(":")) for name, reason in whole.reasons.items()):
        assert not other or place[other] < place[name]
        assert kind != "near_duplicate_of" or other in stays


def noisy(text, chance):
    """Of every hundred words one is lost and one changes places; capitals and commas go as they like."""
    words = [word.swapcase() if chance.random() < 0.05 else word for word in text.split()]
    words = [word.rstrip(",.;") or word if chance.random() < 0.2 else word for word in words]
    for _ in range(len(words) // 100):
        del words[chance.randrange(len(words))]
        place = chance.randrange(len(words) - 1)
        words[place : place + 2] = reversed(words[place : place + 2])
    return " ".join(words)


@pytest.mark.parametrize("apart", [True, False], ids=["in a later partition", "in the same partition"])
def test_planted_copies_are_dropped_with_the_name_of_their_original(tmp_path, passages, apart):
    chance = random.Random(1)
    texts = pl.Series("text", [noisy(text, chance) for text in passages["text"]])
    copies = passages.with_columns(texts, id=pl.col("id") + "-copy")
    run = Run(tmp_path / "run", *([passages, copies] if apart else [[copies, passages]])).run()
    found = [name for name in copies["id"] if name in run.reasons]
    assert len(found) >= 0.99 * len(copies)
    texts = dict(rows for some in (passages, copies) for rows in some.select("id", "text").iter_rows())
    for name, reason in run.reasons.items():
        kind, _, other = reason.partition(":")
        original = name.removesuffix("-copy")
        assert kind == "near_duplicate_of"
        if name == original:
            assert jaccard(texts[name], texts[other]) > 0.9, "some passages are two questions' answer"
        else:
            assert other == run.reasons.get(original, f":{original}").partition(":")[2]
    assert sum(name in run.reasons for name in passages["id"]) < 10


def test_a_later_row_that_bridges_two_that_stay_goes_and_moves_neither(tmp_path, forty):
    words = [f"word{number}" for number in range(100)]
    ends = [("end-1", " ".join(words[:60]), "positive"), ("end-2", " ".join(words[10:70]), "negative")]
    bridge = pl.DataFrame([("a-bridge", " ".join(words[5:65]), "positive")], SCHEMA, orient="row")
    first = pl.concat([forty, pl.DataFrame(ends, SCHEMA, orient="row")])
    before, after = Run(tmp_path / "before", first).run(), Run(tmp_path / "after", first, bridge).run()
    assert before.reasons == {}
    assert after.reasons == {"a-bridge": "near_duplicate_of:end-1"}
    assert noted(after.rows) == noted(before.rows)


def test_a_later_row_with_another_label_goes_and_the_earlier_stays(tmp_path, forty):
    other = {"negative": "positive", "positive": "negative"}
    later = forty.head(1).with_columns(pl.col("label").replace(other), id=pl.lit("a-later"))
    before, after = Run(tmp_path / "before", forty).run(), Run(tmp_path / "after", forty, later).run()
    assert after.reasons == {"a-later": f"conflicting_label_with:{forty['id'][0]}"}
    assert noted(after.rows) == noted(before.rows)
    assert after.counts["conflicts"] == {"groups": 1, "rows": 1}


def test_every_row_that_went_is_listed_once_with_its_partition(tmp_path, forty):
    again = forty.with_columns(id="z-" + pl.col("id"))
    run = Run(tmp_path / "run", forty, again, again.with_columns(id="z" + pl.col("id"))).run()
    dropped = pl.read_parquet(run.kept / DROPPED)
    assert dropped["partition"].to_list() == [1] * 40 + [2] * 40
    assert dropped["id"].to_list() == sorted(again["id"]) + sorted("z" + again["id"])
    assert set(dropped["reason"]) == {f"duplicate_of:{name}" for name in forty["id"]}


# What another process runs, given the folder.
THERE = """
import sys
from pathlib import Path
from tests.test_clean import PARAMS, PROBLEM, clean
folder = Path(sys.argv[1])
clean(folder / "valid", folder / "clean", folder / "clean.json", params=PARAMS, problem=PROBLEM)
"""


def test_another_process_with_other_threads_writes_the_same_bytes(tmp_path, passages):
    chance = random.Random(2)
    texts = pl.Series("text", [noisy(text, chance) for text in passages["text"]])
    rows = pl.concat([passages, passages.with_columns(texts, id=pl.col("id") + "-copy")])
    here = Run(tmp_path / "here", rows).run()
    for threads in ("1", "2"):
        there = Run(tmp_path / threads, rows)
        environment = {**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", THERE, str(there.kept.parent)]
        subprocess.run(command, env=environment, cwd=REPOSITORY, check=True)
        assert there.bytes == here.bytes
    assert here.counts["dropped"]["near_duplicate_of"] > 290


class Pairs(TextClassification):
    """A problem of two texts, and without a label to tell apart by."""

    texts = ("text", "reply")
    label = None


def test_of_several_texts_each_counts_and_without_a_label_nothing_contradicts(tmp_path, forty):
    replies = forty.select("id", "text", reply=pl.col("text").reverse())
    odd = [
        ("x-1", "write to a@x.org", "to b@x.org, or to A@x.org"),
        ("x-2", "write to c@x.org", "to d@x.org, or to c@x.org"),
        ("x-3", "of a dog", "and a cat"),
        ("x-3-shifted", "of a dogand", "a cat"),
        ("x-3-shifted-more", "of a doga", "nd a cat"),
        ("x-4", "a question", None),
        ("x-5", "a question", "no"),
    ]
    rows = pl.concat([replies, pl.DataFrame(odd, replies.schema, orient="row")])
    run = Run(tmp_path / "run", rows, near_duplicates=None)
    clean(run.valid, run.kept, run.tally, params=run.params, problem=Pairs())
    assert run.reasons == {"x-2": "duplicate_of:x-1", "x-4": "no_text", "x-5": "too_short"}
    written = run.rows.filter(pl.col("id") == "x-1").select("text", "reply").row(0)
    assert written == ("write to ⟨EMAIL_1⟩", "to ⟨EMAIL_2⟩, or to ⟨EMAIL_1⟩")
    assert run.counts["conflicts"] == {"groups": 0, "rows": 0}
    assert sum(split["rows"] for split in run.counts["splits"].values()) == len(rows) - 3
    assert not any("labels" in split for split in run.counts["splits"].values())
