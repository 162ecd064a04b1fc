"""`mill pull` moves a model's pin, and says what it did."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.pull import pull
from tasks.errors import ParamsError, SourceError
from tasks.params import CollectFiles, load_model
from tasks.shards import read_json
from tasks.sources import read_pins
from tasks.sources.files import SOURCE

REPOSITORY = Path(__file__).parent.parent


def write_params(root: Path, **changes: object) -> None:
    """params.yaml with one model `notes`, which is the shipped `reviews` but for the changes."""
    params = YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())["models"]["reviews"]
    model = {**params, "pin": "data/notes/source.json", "feedback": None, **changes}
    with (root / "params.yaml").open("w") as file:
        YAML().dump({"models": {"notes": model}}, file)


def files_in(path: str) -> dict[str, object]:
    collect = {"path": path, "format": "auto", "where": None, "columns": {"text": "text", "label": "label"}}
    return {"source": "files", "collect": {**collect, "rows_per_shard": 10}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("text,label\na,x\n")
    write_params(tmp_path, **files_in("in/*.csv"))
    return tmp_path


def test_a_first_pull_pins_what_there_is_and_the_next_leaves_the_bytes(root: Path) -> None:
    said = pull("notes", root)
    assert said.startswith("notes: 1 new partition (a.csv). 1 partition pinned in ")
    pin = root / "data/notes/source.json"
    before = pin.read_bytes(), pin.stat().st_mtime_ns
    assert pull("notes", root) == "notes: nothing new in the source; 1 partition pinned."
    assert (pin.read_bytes(), pin.stat().st_mtime_ns) == before
    assert (root / "data/notes/admitted.jsonl").read_text().strip() == ""
    assert (root / "data/notes/forgotten.jsonl").read_text() == "\n"


def test_new_files_come_behind(root: Path) -> None:
    pull("notes", root)
    for name in ("0.csv", "b.csv", "c.csv", "d.csv"):
        (root / "in" / name).write_text(f"text,label\n{name},x\n")
    assert pull("notes", root).startswith("notes: 4 new partitions (0.csv, b.csv, c.csv, …). 5 partitions pinned in ")
    names = [entry["name"] for entry in read_json(root / "data/notes/source.json")["partitions"]]
    assert names == ["a.csv", "0.csv", "b.csv", "c.csv", "d.csv"]


def test_a_failed_pull_leaves_the_pin(root: Path) -> None:
    pull("notes", root)
    before = (root / "data/notes/source.json").read_bytes()
    (root / "in/a.csv").write_text("text,label\nchanged,x\n")
    with pytest.raises(SourceError, match=r"a.csv is not what it was"):
        pull("notes", root)
    assert (root / "data/notes/source.json").read_bytes() == before


def test_admitted_rows_are_left_alone(root: Path) -> None:
    (root / "data/notes").mkdir(parents=True)
    (root / "data/notes/admitted.jsonl").write_text('{"id": "1"}\n')
    pull("notes", root)
    assert (root / "data/notes/admitted.jsonl").read_text() == '{"id": "1"}\n'


def test_data_in_the_repository_needs_no_pull_but_gets_its_lists(root: Path) -> None:
    write_params(root, **files_in("in/a.csv"), pin="in/a.csv")
    said = pull("notes", root)
    assert said == "notes: the data is in/a.csv, in the repository; DVC itself sees its changes. Nothing to pull."
    assert (root / "data/notes/admitted.jsonl").exists()
    assert (root / "data/notes/forgotten.jsonl").exists()
    assert not (root / "data/notes/source.json").exists()


@pytest.mark.parametrize(
    ("path", "pin"), [("in", "in"), ("in/*.csv", "in"), ("in/*.csv", "in/*.csv"), ("in/a.csv", "in"), ("in/*", "no")]
)
def test_a_folder_in_the_repository_is_pulled_like_any_other(root: Path, path: str, pin: str) -> None:
    write_params(root, **files_in(path), pin=pin)
    with pytest.raises(ParamsError, match=r"rite pin: data/\S+/source.json"):
        pull("notes", root)
    write_params(root, **files_in(path))
    assert pull("notes", root).startswith("notes: 1 new partition (a.csv). 1 partition pinned in ")


def test_a_pulled_pin_is_good_in_a_clone_at_another_path(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pull("notes", root)
    clone = tmp_path_factory.mktemp("clone") / "deep"
    shutil.copytree(root, clone)
    shutil.rmtree(root / "in")
    assert pull("notes", clone) == "notes: nothing new in the source; 1 partition pinned."
    assert str(root) not in (clone / "data/notes/source.json").read_text()
    params = load_model("notes", clone / "params.yaml").collect
    assert isinstance(params, CollectFiles)
    params = params.model_copy(update={"path": str(clone / "in/*.csv")})
    (partition,) = read_pins(clone / "data/notes/source.json")
    assert [rows.rows() for rows in SOURCE.read(params, partition, 10)] == [[("a", "x")]]


def test_data_that_dvc_would_not_watch_is_refused(root: Path) -> None:
    write_params(root, **files_in("in/a.csv"), pin="in/b.csv")
    with pytest.raises(
        ParamsError, match=r"models.notes: pin is 'in/b.csv', which is not what collect reads.*pin: in/a.csv"
    ):
        pull("notes", root)
    columns = {"text": "text", "label": "label"}
    common = {"columns": columns, "where": None, "rows_per_shard": 10}
    package = {**common, "package": "p", "file": "f.csv", "format": "csv"}
    write_params(root, source="package", collect=package, pin="in/a.csv")
    with pytest.raises(ParamsError, match=r"pin is 'in/a.csv', which is not.*Write pin: data/<model>/source.json\.$"):
        pull("notes", root)


def test_a_table_without_a_watermark_is_replaced_with_a_word_of_warning(root: Path) -> None:
    with closing(sqlite3.connect(root / "notes.db")) as database, database:
        database.execute("CREATE TABLE notes AS SELECT 'a' AS text, 'x' AS label")
    collect: dict[str, object] = {
        "url": f"sqlite:///{root}/notes.db",
        "query": "SELECT * FROM notes",
        "watermark": None,
    }
    collect |= {"columns": {"text": "text", "label": "label"}, "where": None, "rows_per_shard": 10}
    write_params(root, source="sql", collect=collect)
    assert "1 new partition (all)" in pull("notes", root)
    with closing(sqlite3.connect(root / "notes.db")) as database, database:
        database.execute("INSERT INTO notes VALUES ('b', 'y')")
    said = pull("notes", root)
    assert "all has changed and is pinned anew, because nothing in the source tells new rows from old" in said
    assert "new partition" not in said
