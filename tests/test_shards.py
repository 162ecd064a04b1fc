import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tasks.errors import DataError, OutOfSpace
from tasks.shards import (
    ShardWriter,
    atomic_file,
    atomic_folder,
    read_json,
    read_rows,
    read_shards,
    require_space,
    sha256_of,
    write_json,
    write_parquet,
)
from tests.conftest import REPOSITORY

ROWS = pl.DataFrame(
    {"id": [f"r{n}" for n in range(10)], "text": ["a", "é", "中", "🙂", "", "a\0b", "x", "y", "z", None]}
)


def write(folder: Path, rows: pl.DataFrame, per_shard: int, pieces: int = 1) -> None:
    with atomic_folder(folder) as unfinished:
        writer = ShardWriter(unfinished, per_shard, rows.schema)
        for piece in range(pieces):
            writer.write(rows[piece * len(rows) // pieces : (piece + 1) * len(rows) // pieces])
        writer.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_back_as_they_were(tmp_path):
    write(tmp_path / "rows", ROWS, 4)
    assert read_rows(tmp_path / "rows").equals(ROWS)
    assert [shard.rows for shard in read_shards(tmp_path / "rows")] == [4, 4, 2]


def test_the_bytes_do_not_depend_on_the_pieces_that_rows_arrive_in(tmp_path):
    write(tmp_path / "one", ROWS, 4)
    write(tmp_path / "many", ROWS, 4, pieces=5)
    for name in names(tmp_path / "one"):
        assert sha256_of(tmp_path / "one" / name) == sha256_of(tmp_path / "many" / name)


def test_a_folder_without_rows_can_be_read(tmp_path):
    write(tmp_path / "rows", ROWS.clear(), 4)
    assert read_rows(tmp_path / "rows").schema == ROWS.schema


def test_the_manifest_names_each_shard_with_its_hash(tmp_path):
    write(tmp_path / "rows", ROWS, 4)
    manifest = read_json(tmp_path / "rows" / "manifest.json")
    assert manifest["rows"] == 10
    assert manifest["columns"] == {"id": "String", "text": "String"}
    for entry in manifest["shards"]:
        assert sha256_of(tmp_path / "rows" / entry["name"]) == entry["sha256"]


def test_a_shard_cut_short_is_named(tmp_path):
    write(tmp_path / "rows", ROWS, 100)
    [shard] = read_shards(tmp_path / "rows")
    shard.path.write_bytes(shard.path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows-00000\.parquet is not a whole Parquet file"):
        shard.read()


def test_a_block_that_fails_leaves_what_stood_before(tmp_path):
    write_json(tmp_path / "a.json", {"kept": True})
    write(tmp_path / "rows", ROWS, 100)
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.json") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "rows") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "a.json") == {"kept": True}
    assert read_rows(tmp_path / "rows").equals(ROWS)
    assert names(tmp_path) == ["a.json", "rows"]


def test_a_folder_left_by_a_killed_writer_is_removed_and_a_living_writer_s_is_not(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from tasks.shards import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    writers = []
    for _ in range(2):
        command = [sys.executable, "-c", script, str(tmp_path / "rows")]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert writer.stdout.readline() == b"ready\n"
        writers.append(writer)
    killed, living = writers
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    write(tmp_path / "rows", ROWS, 100)
    assert names(tmp_path) == [f".unfinished-{living.pid}-rows", "rows"]
    living.kill()
    living.wait()
    living.stdout.close()


def test_what_a_process_of_the_same_number_left_in_an_earlier_life_is_removed(tmp_path):
    left = tmp_path / f".unfinished-{os.getpid()}-rows"
    left.mkdir()
    (tmp_path / f".unfinished-{os.getpid()}-a.json").write_text("half")
    write(tmp_path / "rows", ROWS, 100)
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json", "rows"]


def test_a_kill_between_the_two_renames_gives_the_old_folder_back(tmp_path):
    write(tmp_path / "rows", ROWS, 100)
    (tmp_path / "rows").rename(tmp_path / f".replaced-{os.getpid()}-rows")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "rows"):
        raise RuntimeError
    assert read_rows(tmp_path / "rows").equals(ROWS)
    assert names(tmp_path) == ["rows"]


def test_a_disk_that_fills_up_is_said_and_nothing_is_replaced(small_disk):
    disk = small_disk("256k")
    write(disk / "rows", ROWS, 100)
    noise = pl.DataFrame({"id": [os.urandom(1000).hex() for _ in range(1000)]})
    with pytest.raises(OutOfSpace, match="Nothing was replaced; make room and run it again"):
        write(disk / "rows", noise, 100)
    assert read_rows(disk / "rows").equals(ROWS)
    assert names(disk) == ["rows"]


def test_an_error_of_the_disk_that_is_not_about_room_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="Input/output") as failed, atomic_file(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(failed.value, OutOfSpace)


def test_too_little_room_is_seen_before_the_work(tmp_path):
    with pytest.raises(OutOfSpace, match=r"this needs about 1,000,000,000,000 MB"):
        require_space(tmp_path / "not" / "made" / "yet", 10**18)
    require_space(tmp_path, 1)


def test_json_has_one_form_and_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": ["é"]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    "é"\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"a": float("nan")})


def test_missing_and_damaged_json_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="`dvc repro` makes what is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_parquet_has_the_same_bytes_each_time(tmp_path):
    assert write_parquet(tmp_path / "a", ROWS).sha256 == write_parquet(tmp_path / "b", ROWS).sha256
