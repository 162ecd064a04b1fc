"""Rows that are forgotten and purged, on real Git, DVC with a remote, and journal."""

import io
import json
import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import flows.forget as command
from flows import purge, registry
from flows.erasure import Erasure
from flows.forget import forget
from flows.forgetting import ForgetError
from flows.gating import GateError, _case
from flows.git import LIVE, GitError, git, tip
from flows.locks import only_one
from flows.marks import marks
from flows.objects import Place
from flows.pull import pull
from flows.status import _forgotten, _of_branches
from flows.trace import trace_row
from flows.worktree import Busy
from tasks import database
from tasks.forgotten import read_forgotten
from tasks.ids import AFTER_KEY
from tasks.journal import Label, open_journal
from tasks.paths import Paths
from tasks.release import read_release
from tasks.shards import read_json, write_json, write_text
from tests.passport_world import World, copy_of, facts_of, long_one, make_world
from tests.test_worktree import dvc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

WHY = "erasure request 4711"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny, reviews) -> World:
    return make_world(tmp_path_factory.mktemp("passport"), tiny, reviews)


@pytest.fixture
def world(made, tmp_path) -> World:
    return copy_of(made, tmp_path / "own")


def ids_in(content: bytes) -> set[str]:
    """The ids of the rows in a file, whatever kind of file of rows it is; read without the code under test."""
    if content.startswith(b"PAR1"):
        rows = pl.read_parquet(content)
    elif content.startswith(b"ARROW1"):
        rows = pl.read_ipc(io.BytesIO(content))
    elif b'"tolerance"' in content[-200:]:
        return {row["id"] for row in json.loads(content)["rows"]}
    else:
        return set()
    named = rows["reason"].str.extract(":(.*)$").drop_nulls().to_list() if "reason" in rows.columns else []
    return {*named, *rows["id"]} if "id" in rows.columns else set()


def holders(world: World, id: str) -> list[str]:
    """Every file of the repository and of its remote in which a row is, or its id, or its text in clear.

    Not of Git's history, which has no rows of this world, and not of the source, which is not the repository's.
    """
    top = world.root.parent
    return files_with(top, id, world.text(id), skip=(".git", "incoming"))


def files_with(top: Path, id: str, text: str, skip: Iterable[str]) -> list[str]:
    """Every file below a folder in which a row is, read by other code than that under test."""
    found = []
    for file in sorted(top.rglob("*")):
        name = file.relative_to(top)
        if file.is_file() and not set(skip) & set(name.parts):
            content = file.read_bytes()
            if id in ids_in(content) or text.encode() in content or f'"{id}"'.encode() in content:
                found.append(name.as_posix())
    return found


def collected(world: World, folder: Path | None = None) -> list[str]:
    found = [
        pl.read_parquet(file)["id"]
        for file in sorted(((folder or world.root) / "data/films/collect").glob("*.parquet"))
    ]
    return pl.concat(found).to_list()


def refs(world: World) -> str:
    return git(world.root, "for-each-ref") + git(world.root, "rev-parse", "HEAD")


def go(world: World, *ids: str, **more: Any) -> int:
    return forget(world.root, ids, "films", why=WHY, **{"purge_too": True, "yes": True, **more})


def everything_but(world: World, ids: Iterable[str]) -> list[str]:
    return [id for id in pl.concat([world.first, world.second])["id"] if id not in set(ids)]


def test_a_forgotten_row_leaves_later_data_and_the_versions_that_saw_it_are_marked(world, capsys):
    old, new = world.row("train", world.first), world.row("test", world.second)
    before = tip(world.root, "main")
    assert go(world, old, new, purge_too=False) == 0
    said = capsys.readouterr().out
    assert "films@v1.1.0      1 in train, 1 in test, the champion" in said
    assert "Next: mill retrain films" in said
    (need,) = _forgotten(world.root, "films")
    assert need.startswith("films@v1.1.0 is in use. It can still be made again, though 2 rows that it saw were forg")
    assert git(world.root, "diff", "--name-only", before, "main") == "data/films/forgotten.jsonl"
    text = (world.root / "data/films/forgotten.jsonl").read_text()
    assert old not in text
    listed = read_forgotten(world.root / "data/films/forgotten.jsonl")
    entries = listed.entries_of(pl.Series([old, new]), AFTER_KEY).to_list()
    told = facts_of(world.root, "forgotten/films/1")
    assert told["seen"] == {
        entries[0]: {"films@v1.0.0": "train", "films@v1.1.0": "train"},
        entries[1]: {"films@v1.1.0": "test"},
    }
    marked = marks(world.root, "films")
    assert sorted(marked) == ["films@v1.0.0", "films@v1.1.0"]
    assert all(mark.is_reproducible for mark in marked.values())
    release = world.run("the next version")
    assert collected(world) == everything_but(world, [old, new])
    assert not {old, new} & set(world.rows["id"])
    registry.register(world.root, "films", git(world.root, "rev-parse", "HEAD"), release=_release(world), why="")
    assert release not in marks(world.root, "films")
    assert sorted(marks(world.root, "films")) == ["films@v1.0.0", "films@v1.1.0"]
    trace_row(world.root, old)
    assert "It is forgotten: no later data has it (forgotten/films/1 of" in capsys.readouterr().out


def _release(world: World) -> Any:
    return read_release(world.root / "models/films/release")


def test_what_is_purged_takes_no_knowledge_of_the_other_rows_with_it(world, capsys):
    first, second, other = (world.row(split, world.first) for split in ("train", "test", "validation"))
    go(world, first)
    assert go(world, second) == 0  # its shards went with the first
    assert holders(world, first) == holders(world, second) == []
    assert list(facts_of(world.root, "forgotten/films/2")["seen"].values()) == [
        {"films@v1.0.0": "test", "films@v1.1.0": "test"}
    ]
    capsys.readouterr()
    trace_row(world.root, other)
    assert "2 versions were chosen by it: films@v1.0.0, films@v1.1.0" in capsys.readouterr().out
    trace_row(world.root, first)
    assert "2 versions learned from it: films@v1.0.0, films@v1.1.0" in capsys.readouterr().out


def test_said_twice_it_is_done_once(world):
    row = world.row("train", world.first)
    go(world, row, purge_too=False)
    before = refs(world)
    assert go(world, row, purge_too=False) == 0
    assert refs(world) == before


def test_a_purged_row_is_in_no_cache_remote_file_page_or_journal_and_the_line_goes_on(world, capsys):
    row = long_one(world)  # so that it is named by its copy, too
    champion = registry.champion(world.root, "films")
    asked = world.predict(1, world.text(row), champion.release)
    other = world.predict(2, "another question", champion.release)
    journal = open_journal(f"sqlite:///{world.root}/.mill/journal.sqlite")
    journal.add_labels([Label(asked, {"label": "negative"})], model="films", client=None)
    journal.close()
    page = world.root / ".mill/retrain/reports/films/1/evaluate.html"
    write_text(page, f"<p>{world.text(row)}</p>")
    mended = {"id": row, "reasons": [], "row": {"text": world.text(row), "label": "positive"}, "why": "typo"}
    write_text(world.root / "data/films/admitted.jsonl", json.dumps(mended) + "\n")
    git(world.root, "branch", LIVE)
    assert len(holders(world, row)) > 10
    assert go(world, row) == 0
    assert holders(world, row) == []
    assert not page.exists()
    journal = open_journal(f"sqlite:///{world.root}/.mill/journal.sqlite")
    assert journal.find(asked) is None
    assert journal.find(other) is not None
    journal.close()
    said = capsys.readouterr().out
    assert "copy-of-it (near_duplicate_of)" in said
    assert not any(mark.is_reproducible for mark in marks(world.root, "films").values())
    # The champion answers as before, and the line makes the next version.
    assert registry.champion(world.root, "films") == champion
    assert registry.settle(world.root) == []
    world.run("the next version")
    assert collected(world) == everything_but(world, [row])
    assert "copy-of-it" in world.rows["id"]
    assert holders(world, row) == []
    assert json.loads(dvc(world.root, "status", "--json")) == {}
    trace_row(world.root, row)
    said = capsys.readouterr().out
    assert "films@v1.0.0  train        forgotten since" in said
    assert "2 versions learned from it" in said


@pytest.mark.long
def test_partitions_that_have_left_their_source_are_not_lost_here_on_live_or_in_a_clone(world, tmp_path):
    row = world.row("train", world.first)
    git(world.root, "switch", "-q", "-c", LIVE)
    third = pl.DataFrame({"id": ["later"], "text": ["it came on live alone"], "label": ["positive"]})
    third.write_csv(world.root / "incoming/3.csv")
    pull("films", world.root)
    world.run("on live")
    git(world.root, "switch", "-q", "main")
    dvc(world.root, "checkout", "-q")
    shutil.rmtree(world.root / "incoming")
    assert go(world, row) == 0
    assert collected(world) == everything_but(world, [row])
    assert git(world.root, "status", "--short") == ""
    for branch, more in (("main", []), (LIVE, ["later"])):
        clone = tmp_path / branch
        git(tmp_path, "clone", "-q", "-b", branch, str(world.root), str(clone))
        dvc(clone, "remote", "modify", "--local", "near", "url", str(world.root.parent / "store"))
        dvc(clone, "pull", "-q", "data/films/collect")
        assert collected(world, clone) == [*everything_but(world, [row]), *more]


STEPS = [
    (command, "_list", "before", "slow"),
    (command, "_list", "after", ""),
    (command, "remember", "after", "slow"),
    (purge, "_collect_here", "after", ""),
    (command, "check_needed", "before", "slow"),
    (command, "_mark", "after", "slow"),
    (purge, "_delete_files", "after", "slow"),
    (Place, "remove", "before", "slow"),
    (Place, "remove", "after", ""),
]
KILLS = [
    pytest.param(owner, step, when, id=f"{when} {step.strip('_')}", marks=[pytest.mark.slow] if mark else [])
    for owner, step, when, mark in STEPS
]


class Killed(BaseException):
    """Stands for the end of the process at this line."""


@pytest.mark.parametrize(("owner", "step", "when"), KILLS)
def test_killed_at_any_step_and_said_again_it_is_finished(world, monkeypatch, owner, step, when):
    row, real = world.row("test", world.second), getattr(owner, step)
    asked = world.predict(1, world.text(row), registry.champion(world.root, "films").release)

    def killed(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            found = real(*arguments, **named)
            list(found) if step == "_delete_files" else None
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, killed)
        with pytest.raises(Killed):
            go(world, row)
    assert go(world, row) == 0
    assert holders(world, row) == []
    assert collected(world) == everything_but(world, [row])
    assert git(world.root, "tag", "--list", "forgotten/*") == "forgotten/films/1"
    assert sorted(facts_of(world.root, "forgotten/films/1")["seen"].popitem()[1]) == ["films@v1.1.0"]
    assert not (world.root / ".mill/forget/films.json").exists()
    journal = open_journal(f"sqlite:///{world.root}/.mill/journal.sqlite")
    assert journal.find(asked) is None
    journal.close()


@pytest.mark.long
def test_while_a_version_in_use_shows_the_row_it_is_said_and_later_finished(world, capsys):
    golden = read_json(world.root / "models/films/release/golden.json")
    row = golden["rows"][0]["id"]
    assert go(world, row) == 1
    assert "films@v1.1.0 is in use, and a row is among its golden rows" in capsys.readouterr().out
    assert any("rows of films are not purged yet" in need for need in _of_branches(world.root))
    assert [path for path in holders(world, row) if "golden" not in path and "files/md5" not in path] == []
    assert registry.settle(world.root) == []
    world.run("the next version")
    version = registry.register(
        world.root, "films", git(world.root, "rev-parse", "HEAD"), release=_release(world), why=""
    )
    registry.promote(world.root, version, why="asked for")
    assert go(world, row) == 0
    assert holders(world, row) == []
    assert _of_branches(world.root) == []


@pytest.mark.long
def test_the_gate_still_judges_against_a_champion_whose_rows_were_purged(world, tmp_path):
    row = world.row("train", world.first)
    go(world, row)
    world.run("the next version")
    paths = Paths("films", world.root)
    case = _case(world.root, paths, tmp_path / "scratch")
    assert case.tag == "films@v1.1.0"
    assert case.champion is not None
    assert case.champion.trained == case.challenger.trained
    params = read_json(world.root / "params.yaml")
    params["models"]["films"]["clean"]["split"]["seed"] += 1
    write_json(world.root / "params.yaml", params)
    with pytest.raises(GateError, match=r"`clean` of params\.yaml has changed since"):
        _case(world.root, paths, tmp_path / "again")


def test_a_remote_that_is_away_is_said_and_purged_the_next_time(world, capsys):
    row, store = world.row("train", world.second), world.root.parent / "store"
    store.rename(world.root.parent / "away")
    store.write_text("no folder")
    assert go(world, row) == 1
    assert "NOT PURGED: the DVC remote near cannot be reached" in capsys.readouterr().out
    store.unlink()
    (world.root.parent / "away").rename(store)
    assert holders(world, row)
    assert go(world, row) == 0
    assert holders(world, row) == []


def test_a_journal_that_is_being_read_is_said_and_purged_the_next_time(world, capsys, monkeypatch):
    monkeypatch.setattr(database, "_EMPTYING_SECONDS", 0.5)
    row = world.row("train", world.second)
    asked = world.predict(1, world.text(row), registry.champion(world.root, "films").release)
    reader = sqlite3.connect(world.root / ".mill/journal.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT id FROM predictions").fetchone() == (asked,)
    assert go(world, row) == 1
    assert "NOT PURGED: What was deleted still stands in" in capsys.readouterr().out
    assert holders(world, row)
    reader.execute("ROLLBACK")  # its connection stays, or SQLite would empty the log as the last one closes
    assert go(world, row) == 0
    assert holders(world, row) == []
    reader.close()


def test_nothing_is_done_before_somebody_has_agreed(world, capsys, monkeypatch):
    row, before = world.row("train", world.first), refs(world)
    held = holders(world, row)
    assert go(world, row, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "can then no longer be made again" in said
    assert "the source itself (incoming/*.csv)" in said
    with pytest.raises(ForgetError, match="--yes"):
        go(world, row, yes=False)
    monkeypatch.setattr("sys.stdin", _Terminal("no\n"))
    with pytest.raises(ForgetError, match=r"Nothing was done\."):
        go(world, row, yes=False)
    assert refs(world) == before
    assert holders(world, row) == held


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_unknown_row_is_named_and_nothing_is_forgotten(world):
    row, before = world.row("train", world.first), refs(world)
    with pytest.raises(ForgetError) as error:
        go(world, row, "copy-of-its")
    assert "films has no row 'copy-of-its' Did you mean 'copy-of-it'?" in str(error.value)
    assert "films@v1.0.0" in str(error.value)
    assert refs(world) == before


def test_a_prediction_that_no_data_has_yet_can_be_forgotten(world):
    asked = world.predict(1, 'never a row, but "quoted"', registry.champion(world.root, "films").release)
    shown = world.root / ".mill/monitor/films/to_label.csv"
    write_text(shown, 'id,text\n1,"never a row, but ""quoted"""\n')
    window = world.root / ".mill/monitor/films/windows/000001/window.json"
    write_json(window, {"text": "another"})
    assert go(world, asked) == 0
    assert (shown.exists(), window.exists()) == (False, True)
    journal = open_journal(f"sqlite:///{world.root}/.mill/journal.sqlite")
    assert journal.find(asked) is None
    journal.close()
    assert read_forgotten(world.root / "data/films/forgotten.jsonl").entry_of(asked)


def test_it_is_said_on_main_and_not_beside_a_retrain(world):
    row = world.row("train", world.first)
    with only_one(world.root, "films", "schedule"), pytest.raises(Busy):
        go(world, row)
    git(world.root, "switch", "-q", "-c", "idea")
    with pytest.raises(GitError, match="git switch main"):
        go(world, row)
    with pytest.raises(ForgetError, match="Say why"):
        forget(world.root, [row], "films", why=" ")


def test_changes_of_a_person_are_neither_committed_nor_lost(world):
    row = world.row("train", world.first)
    write_text(world.root / "notes.txt", "mine")
    git(world.root, "add", "notes.txt")
    params = read_json(world.root / "params.yaml")
    write_json(world.root / "params.yaml", {**params, "flows": {**params["flows"], "notify": None}})
    changed = (world.root / "params.yaml").read_text() + "\n"
    write_text(world.root / "params.yaml", changed)
    assert go(world, row) == 0
    assert (world.root / "params.yaml").read_text() == changed
    assert git(world.root, "diff", "--cached", "--name-only") == "notes.txt"


def test_bytes_that_another_model_needs_today_are_not_deleted(world):
    from ruamel.yaml import YAML

    row, yaml = world.row("train", world.first), YAML()
    lock = yaml.load(world.root / "dvc.lock")
    entry = json.loads(json.dumps(lock["stages"]["collect@films"]))
    entry["outs"][0]["path"] = "data/books/collect"
    lock["stages"]["collect@books"] = entry
    yaml.dump(lock, world.root / "dvc.lock")
    before, held = refs(world), holders(world, row)
    with pytest.raises(ForgetError, match="books has the same bytes in data/books/collect"):
        go(world, row)
    assert (refs(world), holders(world, row)) == (before, held)


def test_a_run_that_nobody_committed_is_purged_as_well(world):
    row = world.row("train", world.first)
    stray = world.root / "stray.parquet"
    pl.DataFrame({"id": [row], "text": ["of an experiment"]}).write_parquet(stray)
    dvc(world.root, "add", "-q", "stray.parquet")
    for name in ("stray.parquet", "stray.parquet.dvc"):
        (world.root / name).unlink()
    assert any("files/md5" in path for path in holders(world, row))
    assert go(world, row) == 0
    assert holders(world, row) == []


def test_what_is_still_to_delete_is_written_down_without_the_rows(world):
    row = world.row("train", world.first)
    found = Erasure({"a"}, {"b.dir"}, {"data/x"}, {"1"})
    purge.remember(world.root, "films", found)
    file = world.root / ".mill/forget/films.json"
    assert row not in file.read_text()
    again = purge.remember(world.root, "films", Erasure(objects={"c"}))
    assert again.objects == {"a", "c"}
    assert purge.remembered(world.root, "films") == again
