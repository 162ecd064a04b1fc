"""What the monitor looks at where a promoted version does not come up in the running server."""

from pathlib import Path
from shutil import copytree

import pytest

from flows.monitor import monitor
from flows.monitored import Watched
from tasks.release import GOLDEN, Release, read_release
from tasks.shards import read_json, write_json
from tests.conftest import Line
from tests.model_server import running
from tests.test_monitor import ODD, sealed
from tests.waiting import wait_until
from tests.watched import MODEL, WINDOW, make_world


def mistaken(release: Release, folder: Path) -> Release:
    """A version that answers otherwise than it says it did where it was made."""
    copytree(release.folder, folder)
    golden = read_json(folder / GOLDEN)
    for row in golden["rows"]:
        row["outputs"] = dict.fromkeys(row["outputs"], 0)
    write_json(folder / GOLDEN, golden)
    return sealed(folder)


def test_drift_under_the_version_that_goes_on_answering_is_an_alarm(
    released: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    world = make_world(tmp_path / "root", released)
    one, two = world.releases["one"].version, mistaken(read_release(released.paths.release), tmp_path / "two").version
    with running(world.root) as server:
        params = read_json(world.root / "params.yaml")
        params["flows"]["serve"]["port"] = int(server.url.rpartition(":")[2])
        write_json(world.root / "params.yaml", params)
        world.promote("two", read_release(tmp_path / "two"))
        wait_until(lambda: server.live.failures.get(MODEL))
        world.ask(ODD[: 2 * WINDOW])
        looked = monitor(world.root, MODEL, say=lambda _: None)
    assert (looked.verdict, looked.num_windows) == ("alarm", 2)
    assert looked.advice[0].startswith(f"{two} was put in use and does not come up")
    assert f"{one} goes on answering" in looked.advice[0]
    page = (world.root / "reports" / MODEL / "monitor.html").read_text()
    assert f"{two} was put in use and does not come up" in page
    assert Watched(world.root, MODEL).summary.exists()
    # Where no server says so, it is the promoted version that is asked about, and nobody has asked it yet.
    assert monitor(world.root, MODEL, say=lambda _: None).verdict == "waiting"
