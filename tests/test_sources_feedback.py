"""Labels that came back to predictions, as rows to learn from: tasks/sources/feedback.py, collect and pull."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from ruamel.yaml import YAML

from flows.pull import pull
from tasks import problems
from tasks.__main__ import run
from tasks.collect import Origin, collect
from tasks.errors import ParamsError, SourceError
from tasks.journal import Journal, Label, Prediction, open_journal
from tasks.params import CollectFeedback, CollectFiles, load
from tasks.paths import Paths
from tasks.shards import read_json, read_rows, write_json
from tasks.sources import Partition, files, write_pins
from tasks.sources.feedback import SOURCE, Feedback
from tests.conftest import REPOSITORY, Line
from tests.postgres_server import PASSWORD, Server, started

COLUMNS = {"id": "id", "text": "text", "label": "label"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    yield from started()


@dataclass
class Kept:
    """A journal, and what the source sees of it."""

    url: str
    option: str  # the URL as params.yaml may hold it
    journal: Journal

    def predict(self, *numbers: int, model: str = "reviews", shadow_of: str | None = None) -> None:
        predictions = [
            Prediction(
                id=f"{number:032d}",
                at_us=1_000_000 * number,
                model=model,
                version="sha-1",
                client="desk",
                inputs={"text": f"film number {number}"},
                answer={"label": "positive"},
                latency_ms=1.0,
                shadow_of=shadow_of,
            )
            for number in numbers
        ]
        self.journal.record(predictions).result(10)

    def label(self, labels: Mapping[int, Any], model: str = "reviews") -> None:
        told = [Label(f"{number:032d}", {"label": value}) for number, value in labels.items()]
        self.journal.add_labels(told, model=model, client=None)

    @property
    def options(self) -> CollectFeedback:
        return CollectFeedback(columns=COLUMNS, where=None, rows_per_shard=100, model="reviews", url=self.option)

    def pull(self, known: list[Partition]) -> list[Partition]:
        return SOURCE.partitions(self.options, known)

    def read(self, partition: Partition) -> dict[int, str]:
        rows = pl.concat(SOURCE.read(self.options, partition, 2))
        return {int(row["id"]): row["label"] for row in rows.to_dicts()}


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    if request.param == "sqlite":
        url = option = f"sqlite:///{tmp_path}/journal.sqlite"
    else:
        server: Server = request.getfixturevalue("postgres")
        server.run("DROP SCHEMA public CASCADE")
        server.run("CREATE SCHEMA public")
        url = f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        monkeypatch.setenv("JOURNAL_URL", url)
        option = "$JOURNAL_URL"
    journal = open_journal(url)
    yield Kept(url, option, journal)
    journal.close()


def test_predictions_with_labels_become_rows_and_those_without_do_not(kept: Kept) -> None:
    kept.predict(1, 2, 3)
    kept.predict(4, model="tweets")
    kept.label({3: "negative", 1: "positive"})
    kept.label({4: "negative"}, model="tweets")
    (partition,) = kept.pull([])
    (rows,) = SOURCE.read(kept.options, partition, 10)
    assert rows["id"].to_list() == [f"{number:032d}" for number in (3, 1)]
    assert rows["text"].to_list() == ["film number 3", "film number 1"]
    assert rows["label"].to_list() == ["negative", "positive"]
    assert rows["prediction_client"].to_list() == ["desk", "desk"]
    assert rows["prediction_at"].dt.epoch("s").to_list() == [3, 1]


def test_what_came_since_is_a_partition_of_its_own_and_nothing_comes_twice(kept: Kept) -> None:
    kept.predict(*range(6))
    kept.label({0: "positive", 1: "positive"})
    first = kept.pull([])
    assert kept.pull(first) == first
    kept.label({1: "positive", 2: "negative", 3: "negative"})  # 1 as it was told already
    second = kept.pull(first)
    assert second[0] == first[0]
    assert [kept.read(part) for part in second] == [
        {0: "positive", 1: "positive"},
        {2: "negative", 3: "negative"},
    ]


def test_a_corrected_label_gives_its_partition_another_pin_and_no_second_row(kept: Kept) -> None:
    kept.predict(0, 1, 2)
    kept.label({0: "positive", 1: "positive"})
    first = kept.pull([])
    kept.label({1: "negative"})
    mended = kept.pull(first)
    assert [part.name for part in mended] == [part.name for part in first]
    assert mended != first
    assert kept.read(mended[0]) == {0: "positive", 1: "negative"}
    assert kept.read(first[0]) == {0: "positive", 1: "positive"}  # a pin gives what it pinned
    kept.label({2: "negative"})
    assert [kept.read(part) for part in kept.pull(mended)] == [{0: "positive", 1: "negative"}, {2: "negative"}]


def test_of_labels_kept_before_they_were_checked_the_misfits_are_null_and_the_others_are_read(kept: Kept) -> None:
    kept.predict(0, 1, 2)
    kept.label({0: "positive", 1: ["positive"], 2: "negative"})
    (partition,) = kept.pull([])
    source = Feedback(problems.load("text_classification").columns)
    for rows_per_batch in (1, 10):  # alone in its batch, too
        rows = pl.concat(source.read(kept.options, partition, rows_per_batch))
        assert rows["label"].to_list() == ["positive", None, "negative"]
        assert rows.schema["label"] == pl.String()
    with pytest.raises(SourceError, match="do not have one type by column"):
        list(SOURCE.read(kept.options, partition, 10))


def test_what_the_journal_forgot_stays_pinned_and_cannot_be_read_anew(kept: Kept) -> None:
    kept.predict(0, 1)
    kept.label({0: "positive", 1: "negative"})
    pinned = kept.pull([])
    kept.journal.forget([f"{0:032d}"])
    assert kept.pull(pinned) == pinned
    with pytest.raises(SourceError, match="no longer has these rows as they were pinned"):
        kept.read(pinned[0])


def test_numbers_of_labels_are_never_given_again(kept: Kept) -> None:
    """Or what is labelled after a purge would stand below the watermark, and never be learned."""
    kept.predict(0, 1)
    kept.label({0: "positive"})
    pinned = kept.pull([])
    kept.journal.purge(before_us=1)
    kept.label({1: "negative"})
    assert [kept.read(part) for part in kept.pull(pinned)[1:]] == [{1: "negative"}]


def test_a_journal_that_is_not_there_is_named_and_none_is_made(tmp_path: Path) -> None:
    options = CollectFeedback(
        columns=COLUMNS, where=None, rows_per_shard=10, model="reviews", url=f"sqlite:///{tmp_path}/none.sqlite"
    )
    with pytest.raises(SourceError, match=r"no journal at .*none\.sqlite"):
        SOURCE.partitions(options, [])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path


def arrive(place: Path, *numbers: int) -> None:
    rows = [(f"k{number}", f"book number {number}", "positive") for number in numbers]
    frame = pl.DataFrame(rows, schema=["id", "text", "label"], orient="row")
    frame.write_csv(place / f"incoming/{numbers[0]}.csv")


def pinned_and_collected(place: Path, kept: Kept) -> list[str]:
    """Pull both sources as `mill pull` does, collect, and give the texts in the order of the shards."""
    params = CollectFiles(columns=COLUMNS, where=None, rows_per_shard=100, path=str(place / "incoming"), format="csv")
    pins = [place / "source.json", place / "feedback.json"]
    known = [[Partition(**one) for one in read_json(pin)["partitions"]] if pin.exists() else [] for pin in pins]
    found = files.SOURCE.partitions(params, known[0])
    write_pins(pins[0], found)
    labels = kept.pull(known[1])
    write_pins(pins[1], [Partition(part.name, {"behind": len(found), **part.pin}) for part in labels])
    collect(
        pins[0],
        place / "forgotten.jsonl",
        place / "collect",
        place / "report.json",
        params=params,
        source=files.SOURCE,
        problem=problems.load("text_classification"),
        feedback=Origin(pins[1], kept.options, SOURCE),
    )
    return [text.removesuffix("s").replace(" number ", "") for text in read_rows(place / "collect")["text"]]


def test_rows_of_both_stand_in_the_order_in_which_they_were_pinned(kept: Kept, place: Path) -> None:
    kept.predict(*range(10))
    arrive(place, 1)
    assert pinned_and_collected(place, kept) == ["book1"]
    kept.label({1: "negative"})
    assert pinned_and_collected(place, kept) == ["book1", "film1"]
    arrive(place, 2)
    assert pinned_and_collected(place, kept) == ["book1", "film1", "book2"]
    kept.label({2: "negative", 3: "positive"})
    assert pinned_and_collected(place, kept) == ["book1", "film1", "book2", "film2", "film3"]
    kept.label({1: "positive"})
    assert pinned_and_collected(place, kept) == ["book1", "film1", "book2", "film2", "film3"]
    rows = read_rows(place / "collect")
    assert rows.filter(pl.col("text") == "film number 1")["label"].to_list() == ["positive"]
    assert rows["id"].n_unique() == len(rows) == 5
    assert read_json(place / "report.json")["rows_of_feedback"] == 3


def test_what_was_collected_outlives_the_journal(kept: Kept, place: Path) -> None:
    kept.predict(1, 2)
    arrive(place, 1)
    kept.label({1: "negative"})
    pinned_and_collected(place, kept)
    before = [path.read_bytes() for path in sorted((place / "collect").glob("*.parquet"))]
    kept.journal.purge(before_us=1_500_000)
    kept.label({2: "negative"})
    assert pinned_and_collected(place, kept) == ["book1", "film1", "film2"]
    assert [path.read_bytes() for path in sorted((place / "collect").glob("*.parquet"))][:2] == before


@pytest.fixture
def root(released: Line, tmp_path: Path) -> Path:
    """A root whose model learns from a file of the repository and from feedback."""
    raw = read_json(released.paths.root / "params.yaml")
    model = raw["models"]["tiny"]
    (tmp_path / "films.csv").write_text("id,text,label\n1,a film,positive\n")
    model["pin"] = model["collect"]["path"] = "films.csv"
    model["collect"]["columns"] = COLUMNS
    model["feedback"] = {"model": "tiny", "url": None, "columns": COLUMNS, "where": None, "rows_per_shard": 10}
    write_json(tmp_path / "params.yaml", raw)
    return tmp_path


def test_mill_pull_pins_what_came_back_behind_the_file_of_the_repository(root: Path) -> None:
    kept = Kept("", "", open_journal(f"sqlite:///{root}/.mill/journal.sqlite"))
    kept.predict(1, 2, model="tiny")
    assert pull("tiny", root).endswith(
        "0 labels are new. They are pinned in " + f"{root}/data/tiny/feedback.json; commit that file."
    )
    kept.label({1: "negative", 2: "positive"}, model="tiny")
    assert "2 labels are new" in pull("tiny", root)
    (entry,) = read_json(Paths("tiny", root).feedback_pin)["partitions"]
    assert (entry["pin"]["behind"], entry["pin"]["rows"]) == (1, 2)
    before = Paths("tiny", root).feedback_pin.read_bytes()
    assert pull("tiny", root).endswith("No new labels.")
    assert Paths("tiny", root).feedback_pin.read_bytes() == before
    kept.label({1: "positive"}, model="tiny")
    assert "0 labels are new. 1 partition of labels corrected" in pull("tiny", root)
    assert read_json(Paths("tiny", root).feedback_pin)["partitions"][0]["pin"]["behind"] == 1
    kept.journal.close()


def test_where_nothing_was_served_yet_there_are_no_new_labels_and_what_was_pinned_stays(root: Path) -> None:
    assert pull("tiny", root).endswith("Nothing was served here yet, so there are no new labels.")
    pin = Paths("tiny", root).feedback_pin
    assert read_json(pin) == {"partitions": []}
    write_json(pin, {"partitions": [{"name": "labels 1 to 2", "pin": {"rows": 2}}]})
    pull("tiny", root)
    assert [part["name"] for part in read_json(pin)["partitions"]] == ["labels 1 to 2"]


def test_a_bad_label_of_an_old_journal_stops_neither_the_pull_nor_the_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept("", "", open_journal(f"sqlite:///{root}/.mill/journal.sqlite"))
    kept.predict(1, 2, model="tiny")
    kept.label({1: ["negative"], 2: "positive"}, model="tiny")
    kept.journal.close()
    raw = read_json(root / "params.yaml")
    raw["models"]["tiny"]["collect"]["where"] = None
    write_json(root / "params.yaml", raw)
    pull("tiny", root)
    monkeypatch.chdir(root)
    run("collect", "tiny")
    rows = dict(read_rows(Paths("tiny", root).collected).select("text", "label").iter_rows())
    assert rows == {"a film": "positive", "film number 1": None, "film number 2": "positive"}


def test_a_journal_that_the_server_keeps_elsewhere_is_not_taken_for_one_without_labels(root: Path) -> None:
    raw = read_json(root / "params.yaml")
    shipped = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["flows"]
    flows = {**shipped, "journal": {"url": "$JOURNAL_URL", "keep_days": 365}, "models": {}}
    write_json(root / "params.yaml", {**raw, "flows": flows})
    with pytest.raises(ParamsError, match=r"Write feedback\.url: \$JOURNAL_URL, so that its labels are found"):
        pull("tiny", root)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({**COLUMNS, "domain": "prediction_client"}, "feedback.columns has 'domain'"),
        ({"text": "text", "label": "label"}, "feedback.columns lacks 'id'"),
    ],
)
def test_columns_that_do_not_go_together_are_refused_where_params_are_read(
    root: Path, columns: dict[str, Any], sentence: str
) -> None:
    raw = json.loads((root / "params.yaml").read_text())
    raw["models"]["tiny"]["feedback"]["columns"] = columns
    write_json(root / "params.yaml", raw)
    with pytest.raises(ParamsError, match=sentence):
        load(root / "params.yaml")
