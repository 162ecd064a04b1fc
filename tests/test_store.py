"""The version store and live.json: what stands in them is whole, checked, and replaced at once."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.store import changing, current, hold, live_file, put_in_use, read_live, set_live, usable, version_folder
from tasks.errors import ReleaseError
from tasks.release import MANIFEST, Release, read_release, seal
from tasks.shards import read_json, write_json, write_text
from tests.conftest import Line


@pytest.fixture
def line(released: Line, copied: Callable[[Line], Line]) -> Line:
    return copied(released)


def bring(release: Release) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(release.folder, folder, dirs_exist_ok=True)


def sealed_again(release: Path, **told: object) -> Release:
    """The release as it would be with other facts."""
    facts = {key: value for key, value in read_json(release / MANIFEST).items() if key not in ("files", "version")}
    seal(release, {**facts, **told})
    return read_release(release)


def test_what_is_brought_stands_there_whole_and_is_brought_once(line):
    root, release = line.paths.root, read_release(line.paths.release)
    held = hold("tiny", release.version, root, bring(release), "the workspace")
    assert held.folder == version_folder(root, "tiny", release.version)
    assert read_release(held.folder).manifest == release.manifest
    nothing = pytest.fail
    assert hold("tiny", release.version, root, lambda _: nothing("it is there"), "nowhere").version == release.version


def test_what_was_damaged_in_the_store_is_brought_again(line):
    root, release = line.paths.root, read_release(line.paths.release)
    held = hold("tiny", release.version, root, bring(release), "the workspace")
    write_text(held.folder / "tokenizer.json", "damaged")
    assert read_release(hold("tiny", release.version, root, bring(release), "the workspace").folder)


@pytest.mark.parametrize("how", ["half", "another", "computes otherwise"])
def test_what_is_not_as_it_should_be_does_not_get_into_the_store(line, how):
    root, release = line.paths.root, read_release(line.paths.release)
    version = release.version
    if how == "half":
        (release.folder / "tokenizer.json").unlink()
        said = r"tokenizer\.json is missing.*They came from a remote\."
    elif how == "another":
        sealed_again(release.folder, reasons=["other"])
        said = rf"a remote holds sha-.*, and not {version}"
    else:
        golden = read_json(release.folder / "golden.json")
        golden["rows"][0]["outputs"]["logits"][0] += 1
        write_json(release.folder / "golden.json", golden)
        version = sealed_again(release.folder).version
        said = "a remote does not compute on this machine what it did"
    with pytest.raises(ReleaseError, match=said):
        hold("tiny", version, root, bring(release), "a remote")
    assert list((root / ".mill/versions/tiny").iterdir()) == []


def test_live_json_is_written_only_where_something_changes_and_for_one_model_alone(line):
    root = line.paths.root
    release = put_in_use("tiny", root)
    write_json(live_file(root), {**read_live(root), "other": {"version": "sha-1"}})
    before = live_file(root).stat().st_mtime_ns
    set_live("tiny", release, root)
    assert live_file(root).stat().st_mtime_ns == before
    set_live("tiny", release, root, tag="tiny@v1.0.0")
    assert read_live(root)["tiny"]["tag"] == "tiny@v1.0.0"
    assert read_live(root)["other"] == {"version": "sha-1"}


def test_many_at_once_lose_no_entry_and_no_reader_sees_half_a_file(line):
    root, release = line.paths.root, put_in_use("tiny", line.paths.root)
    ended, seen = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            seen.append(len(json.loads(live_file(root).read_text())))

    def change(number: int) -> None:
        with changing(root):
            set_live(f"model-{number}", release, root)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    ended.set()
    reader.join()
    assert len(read_live(root)) == 41
    assert seen == sorted(seen)


def test_a_refused_release_answers_only_where_it_was_put_in_use_by_force(line):
    root = line.paths.root
    release = sealed_again(line.paths.release, verdict="refused", reasons=["Too slow."])
    with pytest.raises(ReleaseError, match=r"was refused: Too slow\."):
        put_in_use("tiny", root)
    held = hold("tiny", release.version, root, bring(release), "the workspace")
    set_live("tiny", held, root)
    with pytest.raises(ReleaseError, match=r"was refused: Too slow\."):
        current("tiny", root)
    set_live("tiny", held, root, forced=True)
    assert usable("tiny", root)[0].version == release.version


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "`mill run tiny` puts an accepted release"),
        ({"tag": "tiny@v1.0.0"}, "`mill promote tiny@v1.0.0 --why '…'`"),
    ],
)
def test_a_damaged_version_in_use_says_what_mends_it(line, told, said):
    root, release = line.paths.root, put_in_use("tiny", line.paths.root)
    set_live("tiny", release, root, **told)
    write_text(release.folder / "tokenizer.json", "damaged")
    with pytest.raises(ReleaseError) as error:
        current("tiny", root)
    assert said in str(error.value)
