"""Forgotten rows are in no shard, whenever they were put on the list, and nobody can read from it who they were."""

import json
from pathlib import Path

import polars as pl
import pytest

from tasks.errors import DataError
from tasks.forgotten import hashed, read_forgotten, with_keys
from tasks.ids import AFTER_CONTENT, AFTER_KEY
from tasks.shards import read_json, read_shards
from tests.test_collect import KEYED, UNKEYED, OnlyThese, Place, some_rows

SALT = "0123456789abcdef" * 2


def forget(place: Place, *keys: str, salt: str = SALT) -> None:
    before = place.forgotten.read_text() if place.forgotten.exists() else "\n"
    place.forgotten.write_text(with_keys(before, keys, salt, at="2026-11-24", why="asked for"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "place", KEYED)
    place.root.mkdir()
    place.write("a.csv", some_rows(0, 7))
    place.write("b.csv", some_rows(7, 4))
    place.pull()
    return place


def files(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.collected.iterdir())}


def test_a_forgotten_row_leaves_the_partitions_that_were_collected_before(place: Place) -> None:
    place.collect()
    before = {shard.path.name: shard.sha256 for shard in read_shards(place.collected)}
    forget(place, "k2", "k8")
    rows = place.collect(OnlyThese())  # the source is not asked again
    assert rows["id"].to_list() == [f"k{n}" for n in range(11) if n not in (2, 8)]
    after = {shard.path.name: shard.sha256 for shard in read_shards(place.collected)}
    assert sorted(name for name in before if after[name] != before[name]) == [
        "p00000-00000.parquet",
        "p00001-00000.parquet",
    ]
    report = place.report
    assert (report["read"], report["rows"], report["excluded"], report["forgotten"]) == (11, 9, 0, 2)
    for name, content in files(place).items():
        assert b"text number 2" not in content, name
        assert b"text number 8" not in content, name


def test_collected_anew_the_bytes_are_the_same_in_whatever_order_rows_were_forgotten(place: Place) -> None:
    place.collect()
    for key in ("k9", "k0", "k4"):
        forget(place, key)
        place.collect(OnlyThese())
    step_by_step = files(place)
    for path in place.collected.iterdir():
        path.unlink()
    place.collect()
    assert files(place) == step_by_step


def test_a_row_that_is_on_the_list_no_more_comes_back(place: Place) -> None:
    place.collect()
    untouched = files(place)
    forget(place, "k1")
    place.collect()
    place.forgotten.write_text("\n")
    place.collect()
    assert files(place) == untouched


def test_an_empty_list_leaves_every_byte_as_it_was(place: Place) -> None:
    place.collect()
    without_a_list = files(place)
    place.forgotten.write_text("\n")
    place.collect()
    assert files(place) == without_a_list


def test_all_rows_of_a_shard_may_go(place: Place) -> None:
    place.collect()
    forget(place, *(f"k{n}" for n in range(7, 11)))
    assert place.collect(OnlyThese())["id"].to_list() == [f"k{n}" for n in range(7)]
    place.write("c.csv", some_rows(11, 2))
    place.pull()
    assert place.collect()["id"].to_list()[7:] == ["k11", "k12"]


def test_all_rows_of_a_key_go_so_that_none_is_taken_for_another(tmp_path: Path) -> None:
    place = Place(tmp_path, KEYED)
    place.write("a.csv", [("k", "one", "good"), ("k", "two", "bad"), ("m", "three", "good")])
    place.write("b.csv", [("k", "four", "bad")])
    place.pull()
    assert sorted(place.collect()["id"]) == ["k", "k#1", "k#2", "m"]
    forget(place, "k")
    assert place.collect()["id"].to_list() == ["m"]
    assert place.collect(OnlyThese())["id"].to_list() == ["m"]


def test_ids_that_come_from_content_can_be_forgotten(tmp_path: Path) -> None:
    place = Place(tmp_path, UNKEYED)
    place.write("a.csv", [("", "the same", "good"), ("", "the same", "good"), ("", "another", "bad")])
    place.pull()
    ids = place.collect()
    key = ids.filter(pl.col("text") == "the same")["id"][0].rpartition("-")[0]
    forget(place, key)
    assert place.collect()["text"].to_list() == ["another"]


def test_the_list_does_not_hold_the_keys_and_asks_for_the_salt() -> None:
    text = with_keys("\n", ["jane@example.org"], SALT, at="2026-11-24", why="request 4711")
    assert "jane" not in text
    [line] = text.splitlines()
    assert json.loads(line)["row"] == hashed("jane@example.org", SALT) != hashed("jane@example.org", "f" * 32)


def test_lists_of_two_branches_hold_together_with_the_salt_of_each(tmp_path: Path) -> None:
    path = tmp_path / "forgotten.jsonl"
    ours = with_keys("\n", ["a"], SALT, at="2026-11-24", why="one")
    path.write_text(with_keys(ours, ["b"], "f" * 32, at="2026-11-24", why="two"))
    listed = read_forgotten(path)
    found = listed.entries_of(pl.Series(["a", "b", "c", "a#3"]), AFTER_KEY)
    assert found.to_list() == [hashed("a", SALT), hashed("b", "f" * 32), None, hashed("a", SALT)]
    assert listed.salt == SALT
    assert listed.entries_of(pl.Series(["a#3"]), AFTER_CONTENT).to_list() == [None]


def test_without_a_file_nothing_is_forgotten_and_each_new_list_has_a_salt_of_its_own(tmp_path: Path) -> None:
    listed = read_forgotten(tmp_path / "none.jsonl")
    assert listed.is_empty
    assert listed.entries_of(pl.Series(["a"]), AFTER_KEY).to_list() == [None]
    assert listed.salt != read_forgotten(tmp_path / "none.jsonl").salt


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("{", "this is not JSON"),
        ('["k1"]', "not an object with the keys at, row, salt, why"),
        ('{"at": "", "row": "k1", "why": ""}', "not an object with the keys at, row, salt, why"),
        ('{"at": "", "row": "k1", "salt": "0123456789abcdef0123456789abcdef", "why": ""}', "row is not 32 hexadecimal"),
    ],
)
def test_a_line_that_somebody_wrote_by_hand_is_named(place: Place, line: str, mistake: str) -> None:
    place.forgotten.write_text(f"\n{line}\n")
    with pytest.raises(DataError) as error:
        place.collect()
    assert f"{place.forgotten}, line 2: " in str(error.value)
    assert mistake in str(error.value)


def test_the_manifest_says_what_was_taken_out_of_which_partition(place: Place) -> None:
    forget(place, "k8")
    place.collect()
    first, second = read_json(place.collected / "manifest.json")["partitions"]
    assert "forgotten" not in first
    assert (second["forgotten"], second["read"], second["rows"]) == ({hashed("k8", SALT): 1}, 4, 3)
