"""collect on real files: what is kept, what is read, and which id every row gets."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks import problems
from tasks.collect import collect
from tasks.errors import OutOfSpace, ParamsError, SourceError
from tasks.params import CollectFiles, load_model
from tasks.shards import read_json, read_rows, read_shards
from tasks.sources import Partition, write_pins
from tasks.sources.files import SOURCE

REPOSITORY = Path(__file__).parent.parent
PROBLEM = problems.load("text_classification")
KEYED = {"id": "id", "text": "text", "label": "label"}
UNKEYED = {"text": "text", "label": "label"}


@dataclass
class Place:
    """A folder of CSV files, pinned and collected like a model's data."""

    root: Path
    columns: dict[str, str]
    where: str | None = None
    rows_per_shard: int = 3
    pattern: str = "data/*.csv"

    def write(self, name: str, rows: list[tuple[str, str, str]]) -> None:
        (self.root / "data").mkdir(exist_ok=True)
        pl.DataFrame(rows, schema=["id", "text", "label"], orient="row").write_csv(self.root / "data" / name)

    @property
    def params(self) -> CollectFiles:
        return CollectFiles(
            columns=self.columns,
            where=self.where,
            rows_per_shard=self.rows_per_shard,
            path=str(self.root / self.pattern),
            format="auto",
        )

    @property
    def pin(self) -> Path:
        return self.root / "source.json"

    @property
    def forgotten(self) -> Path:
        return self.root / "forgotten.jsonl"

    @property
    def collected(self) -> Path:
        return self.root / "collect"

    @property
    def report(self) -> dict[str, Any]:
        return dict(read_json(self.root / "report.json"))

    def pull(self) -> None:
        known = [Partition(**entry) for entry in read_json(self.pin)["partitions"]] if self.pin.exists() else []
        write_pins(self.pin, SOURCE.partitions(self.params, known))

    def collect(self, source: Any = SOURCE, pinned: bool = True) -> pl.DataFrame:
        collect(
            self.pin if pinned else None,
            self.forgotten,
            self.collected,
            self.root / "report.json",
            params=self.params,
            source=source,
            problem=PROBLEM,
        )
        return read_rows(self.collected)

    def pulled(self) -> pl.DataFrame:
        self.pull()
        return self.collect()

    def shard_hashes(self) -> dict[str, str]:
        return {name: digest for name, digest in self.hashes().items() if name.endswith(".parquet")}

    def hashes(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self.collected.iterdir())}


class OnlyThese:
    """The files source, which may read some partitions and no other."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.read_names: list[str] = []

    def read(self, options: CollectFiles, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        assert partition.name in self.names, f"{partition.name} was read again"
        self.read_names.append(partition.name)
        yield from SOURCE.read(options, partition, rows_per_batch)


def some_rows(start: int, count: int) -> list[tuple[str, str, str]]:
    return [(f"k{n}", f"text number {n}", "good" if n % 2 else "bad") for n in range(start, start + count)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    keyed = Place(tmp_path, KEYED)
    keyed.write("a.csv", some_rows(0, 7))
    keyed.write("b.csv", some_rows(7, 4))
    keyed.pull()
    return keyed


def test_every_row_of_the_shipped_reviews_that_the_where_names_is_there_once(tmp_path: Path) -> None:
    params = load_model("reviews", REPOSITORY / "params.yaml").collect
    params = params.model_copy(update={"path": str(REPOSITORY / "data/samples/reviews.parquet")})
    nothing, report = tmp_path / "forgotten.jsonl", tmp_path / "report.json"
    collect(None, nothing, tmp_path / "collect", report, params=params, source=SOURCE, problem=PROBLEM)

    source = pl.read_parquet(REPOSITORY / "data/samples/reviews.parquet")
    chosen = source.filter((pl.col("domain") == "movie") & (pl.col("score") != 0))
    rows = read_rows(tmp_path / "collect")
    assert rows.columns == ["id", "text", "label"]
    assert rows["id"].to_list() == chosen["id"].to_list()
    assert rows["text"].to_list() == chosen["text"].to_list()
    assert rows["label"].to_list() == ["positive" if score > 0 else "negative" for score in chosen["score"]]
    report = read_json(tmp_path / "report.json")
    assert (report["read"], report["rows"], report["excluded"]) == (23_703, 10_568, 13_135)


def test_shards_are_named_by_partition_and_never_hold_rows_of_two(place: Place) -> None:
    place.collect()
    assert [shard.path.name for shard in read_shards(place.collected)] == [
        "p00000-00000.parquet",
        "p00000-00001.parquet",
        "p00000-00002.parquet",
        "p00001-00000.parquet",
        "p00001-00001.parquet",
    ]
    manifest = read_json(place.collected / "manifest.json")
    assert [(part["name"], part["rows"], len(part["shards"])) for part in manifest["partitions"]] == [
        ("a.csv", 7, 3),
        ("b.csv", 4, 2),
    ]
    assert place.report["rows"] == 11
    assert place.report["bytes"] == sum(path.stat().st_size for path in place.collected.glob("*.parquet"))


def test_a_new_partition_is_read_alone_and_earlier_ones_keep_their_bytes(place: Place) -> None:
    place.collect()
    before = place.shard_hashes()
    place.write("c.csv", some_rows(11, 5))
    place.pull()
    source = OnlyThese("c.csv")
    rows = place.collect(source)

    assert source.read_names == ["c.csv"]
    assert len(rows) == 16
    after = place.shard_hashes()
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("columns", [KEYED, UNKEYED], ids=["keyed", "unkeyed"])
def test_pulled_bit_by_bit_or_collected_at_once_the_bytes_are_the_same(tmp_path: Path, columns: dict[str, str]) -> None:
    place = Place(tmp_path, columns)
    everything = [*some_rows(0, 9), *some_rows(3, 4), ("k1", "another text", "good"), ("k1", "a third", "bad")]
    for start in range(0, len(everything), 5):
        place.write(f"{start:02d}.csv", everything[start : start + 5])
        place.pull()
        place.collect()
    incremental, report = place.hashes(), place.report
    shutil.rmtree(place.collected)
    place.collect()
    assert place.hashes() == incremental
    assert place.report == report


def test_a_file_that_sorts_before_the_old_ones_becomes_the_last_partition(place: Place) -> None:
    place.write("c.csv", some_rows(5, 2))  # k5 and k6 again
    before = place.pulled()
    shards = place.shard_hashes()
    place.write("0-first.csv", some_rows(5, 2))
    place.pull()
    rows = place.collect(OnlyThese("0-first.csv"))
    assert rows.head(len(before)).equals(before)
    assert rows["id"].tail(2).to_list() == ["k5#2", "k6#2"]
    assert {name: place.shard_hashes()[name] for name in shards} == shards
    grown = place.hashes()
    shutil.rmtree(place.collected)
    place.collect()
    assert place.hashes() == grown


@pytest.mark.parametrize("pattern", ["data", "data/*.csv", "data/**"])
def test_a_folder_or_a_glob_is_collected_by_its_pin_alone(place: Place, pattern: str) -> None:
    place.pattern = pattern
    with pytest.raises(ParamsError, match=r"a folder or a glob.*pin: data/<model>/source.json, and run `mill pull`"):
        place.collect(pinned=False)
    assert not place.collected.exists()


def test_one_file_of_the_repository_may_change(place: Place) -> None:
    place.pattern = "data/a.csv"
    assert place.collect(pinned=False)["id"].to_list() == [f"k{n}" for n in range(7)]
    place.write("a.csv", some_rows(2, 3))
    assert place.collect(pinned=False)["id"].to_list() == ["k2", "k3", "k4"]


def test_a_partition_that_left_the_source_stays(place: Place) -> None:
    place.collect()
    (place.root / "data/a.csv").unlink()
    place.write("c.csv", some_rows(11, 1))
    place.pull()
    assert len(place.collect(OnlyThese("c.csv"))) == 12


def test_a_damaged_shard_is_read_again_from_the_source(place: Place) -> None:
    place.collect()
    before = place.hashes()
    shard = place.collected / "p00000-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    place.collect(OnlyThese("a.csv"))
    assert place.hashes() == before


def test_a_partition_that_is_neither_kept_nor_in_the_source_is_named(place: Place) -> None:
    place.collect()
    before = place.hashes()
    (place.root / "data/a.csv").unlink()
    (place.collected / "p00000-00001.parquet").unlink()
    remaining = place.hashes()
    with pytest.raises(SourceError, match=r"a\.csv is pinned, and is no longer there.*dvc pull"):
        place.collect()
    assert place.hashes() == remaining
    assert len(before) == len(remaining) + 1


def test_a_changed_where_reads_all_again(place: Place) -> None:
    place.collect()
    place.where = "label = 'good'"
    source = OnlyThese("a.csv", "b.csv")
    rows = place.collect(source)
    assert source.read_names == ["a.csv", "b.csv"]
    assert rows["label"].unique().to_list() == ["good"]
    assert (place.report["read"], place.report["rows"], place.report["excluded"]) == (11, 5, 6)


def test_a_data_folder_may_move_without_being_read_again(place: Place) -> None:
    place.collect()
    before = place.hashes()
    (place.root / "data").rename(place.root / "elsewhere")
    place.pattern = "elsewhere/*.csv"
    place.collect(OnlyThese())
    assert place.hashes() == before


def test_the_order_of_rows_in_a_file_does_not_change_the_ids(tmp_path: Path) -> None:
    rows = [*some_rows(0, 6), *some_rows(2, 3), ("k2", "another text", "good"), ("k2", "a third", "bad")]
    shuffled = random.Random(1).sample(rows, len(rows))
    for columns in (KEYED, UNKEYED):
        found: list[list[tuple[object, ...]]] = []
        for order in (rows, shuffled):
            place = Place(tmp_path / f"{len(columns)}-{len(found)}-{order is rows}", columns)
            place.root.mkdir()
            place.write("a.csv", order)
            found.append(sorted(place.pulled().rows()))
        assert found[0] == found[1]


def test_a_key_that_comes_again_is_numbered_by_partition_and_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write("c.csv", [("k1", "zz", "bad"), ("k1", "aa", "bad"), ("new", "n", "good")])
    place.pull()
    rows = place.collect()
    ids = dict(zip(rows["id"], rows["text"], strict=True))
    assert ids["k1"] == "text number 1"
    assert {ids["k1#1"], ids["k1#2"]} == {"aa", "zz"}
    assert rows["id"].n_unique() == len(rows)
    assert place.report["repeated_keys"] == 2
    assert "2 rows repeat an earlier row's key, 'k1' among them" in capsys.readouterr().err


def test_identical_rows_without_a_key_have_ids_of_one_content(tmp_path: Path) -> None:
    place = Place(tmp_path, UNKEYED)
    place.write("a.csv", [("x", "same", "good"), ("x", "same", "good"), ("x", "other", "good")])
    ids = place.pulled()["id"].to_list()
    stem = ids[0].removesuffix("-0")
    assert ids[1] == f"{stem}-1"
    assert ids[2].endswith("-0")
    assert not ids[2].startswith(stem)
    assert place.report["repeated_keys"] == 0


def test_another_choice_of_columns_leaves_the_ids_of_rows_without_a_key(tmp_path: Path) -> None:
    place = Place(tmp_path, UNKEYED)
    place.write("a.csv", some_rows(0, 5))
    before = place.pulled()["id"].to_list()
    place.columns = {**UNKEYED, "label": "'one'", "group": "id"}
    rows = place.pulled()
    assert rows["id"].to_list() == before
    assert rows["group"].to_list() == ["k0", "k1", "k2", "k3", "k4"]


def test_no_row_after_the_where_is_an_error_and_replaces_nothing(place: Place) -> None:
    place.collect()
    before = place.hashes()
    place.where = "label = 'neither'"
    with pytest.raises(SourceError, match=r"None of the source's 11 rows passes collect.where"):
        place.collect()
    assert place.hashes() == before


def test_a_partition_without_a_row_that_passes_has_no_shard_and_is_kept(place: Place) -> None:
    place.write("c.csv", [("k90", "t", "odd")])
    place.where = "label <> 'odd'"
    place.pull()
    place.collect()
    assert read_json(place.collected / "manifest.json")["partitions"][2]["shards"] == []
    before = place.hashes()
    place.collect(OnlyThese())
    assert place.hashes() == before


def test_a_missing_pin_says_which_command_writes_it(tmp_path: Path) -> None:
    place = Place(tmp_path, KEYED)
    place.write("a.csv", some_rows(0, 1))
    with pytest.raises(SourceError, match="`mill pull"):
        place.collect()


@pytest.mark.parametrize("content", ["", "[]", '{"partitions": {}}', '{"partitions": [{"name": 3, "pin": {}}]}', "{"])
def test_a_pin_that_somebody_else_wrote_is_refused(place: Place, content: str) -> None:
    place.pin.write_text(content)
    with pytest.raises(SourceError, match="git checkout"):
        place.collect()


def test_a_problem_column_that_is_mapped_from_nothing_is_named(place: Place) -> None:
    place.columns = {"id": "id", "text": "text", "lable": "label"}
    with pytest.raises(ParamsError, match=r"lacks label, which the problem text_classification needs.*'lable'"):
        place.collect()


def test_columns_of_two_types_in_two_files_are_made_one_where_no_value_is_lost(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"text": "a", "label": "x", "stars": 0.5}\n')
    (tmp_path / "data/b.jsonl").write_text('{"text": "b", "label": "x", "stars": 4}\n')
    place = Place(tmp_path, {**UNKEYED, "stars": "stars"}, pattern="data/*.jsonl")
    assert place.pulled()["stars"].to_list() == [0.5, 4.0]
    assert place.report["columns"]["stars"] == "Float64"


def test_types_are_decided_by_the_first_partition_and_stay(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/b.jsonl").write_text('{"text": "b", "label": "x", "stars": 0.5}\n')
    place = Place(tmp_path, {**UNKEYED, "stars": "stars"}, pattern="data/*.jsonl")
    assert place.pulled()["stars"].to_list() == [0.5]
    (tmp_path / "data/a.jsonl").write_text('{"text": "a", "label": "x", "stars": 4}\n')
    assert place.pulled()["stars"].to_list() == [0.5, 4.0]
    assert place.report["columns"]["stars"] == "Float64"


def test_columns_whose_types_cannot_meet_are_named_with_their_partition(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"text": "a", "label": "x", "stars": 4}\n')
    (tmp_path / "data/b.jsonl").write_text('{"text": "b", "label": "x", "stars": 0.5}\n')
    place = Place(tmp_path, {**UNKEYED, "stars": "stars"}, pattern="data/*.jsonl")
    with pytest.raises(SourceError, match=r"b\.jsonl: the column 'stars' is Float64 here and Int64.*CAST"):
        place.pulled()
    place.columns = {**UNKEYED, "stars": "CAST(stars AS DOUBLE)"}
    assert place.pulled()["stars"].to_list() == [4.0, 0.5]


def test_a_disk_too_small_for_the_source_is_noticed_before_reading(place: Place) -> None:
    entries = json.loads(place.pin.read_text())
    entries["partitions"][0]["pin"]["size"] = 10**18
    place.pin.write_text(json.dumps(entries))
    with pytest.raises(OutOfSpace, match="MB free"):
        place.collect(OnlyThese())
