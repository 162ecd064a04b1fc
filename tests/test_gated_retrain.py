"""A retrain with its real gate, night after night: worse, better, worse again."""

import json
import re
import shutil
from pathlib import Path

import pytest

from flows.git import LIVE, git
from flows.portal import add_portal
from flows.registry import champion, decisions, record_decision
from flows.retrain import retrain
from tasks.release import Release
from tasks.shards import write_text
from tests.conftest import Line
from tests.model_server import running
from tests.test_gating import better, sealed, upside_down  # noqa: F401
from tests.test_retrain import MAKE, STAGES, arrive, toy  # noqa: F401

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]

CLEAN = '\nshutil.copytree("CLEAN", f"data/{model}/clean", dirs_exist_ok=True)\n'


@pytest.fixture
def repository(toy: Path, released: Line, upside_down: Release, better: Release, tmp_path: Path) -> Path:  # noqa: F811
    """Its line makes clean rows as well, and the better release where there are two files."""
    for count, release in enumerate((upside_down, better, upside_down), start=1):
        sealed(release.folder, tmp_path / "releases" / str(count), count=count)
    root = Path(shutil.copytree(toy, tmp_path / "repository", symlinks=True))
    make = MAKE.replace("RELEASES", str(tmp_path / "releases")) + CLEAN.replace("CLEAN", str(released.paths.clean))
    write_text(root / "make.py", make)
    write_text(root / "dvc.yaml", STAGES.replace("      outs:\n", '      outs:\n        - "data/${key}/clean"\n'))
    write_text(root / ".gitignore", (root / ".gitignore").read_text() + "/data/*/clean\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "clean rows")
    return root


@pytest.mark.slow
def test_night_after_night_only_the_better_one_takes_over_and_each_look_is_paid_for(repository):
    first = retrain(repository, "films")
    assert (first.verdict, first.version) == ("promoted", "films@v1.0.0")
    assert "It is the first version" in first.sentence

    arrive(repository, "films", 2)
    second = retrain(repository, "films", why="schedule")
    assert (second.verdict, second.version) == ("promoted", "films@v1.1.0")
    assert "it is better, by 0." in second.sentence
    report = json.loads(git(repository, "show", f"{LIVE}:reports/films/gate.json"))
    assert report["champion"]["tag"] == "films@v1.0.0"
    assert report["sentence"] in git(repository, "log", "-1", "--format=%B", LIVE)

    arrive(repository, "films", 3)
    third = retrain(repository, "films")
    assert (third.verdict, third.exit_code) == ("kept", 3)
    assert "it is worse, by 0." in third.sentence
    assert champion(repository, "films").tag == "films@v1.1.0"
    kept = json.loads(git(repository, "show", f"{third.commit}:reports/films/gate.json"))
    assert (kept["test_set"]["uses_before"], kept["test_set"]["spent_before"]) == (1, 0.0025)

    made = decisions(repository, "films")
    assert [decision["alpha_spent"] for decision in made] == [0, 0.0025, 0.0025]
    assert made[1]["test_set"] == made[2]["test_set"] == kept["test_set"]["name"]
    assert made[2]["measured"]["latency_ms"]["challenger"]["p50"] > 0
    assert list((repository / ".mill/retrain/reports/films").glob("*/gate.html"))

    # The last one was kept out, and the page tells of it; a fourth that its floors refuse leaves that as it is.
    found = kept["comparison"]
    for _ in ("kept", "refused"):
        page = live_page_of(repository)
        [table] = re.findall(r'<table class="compared">.*?</table>', page, re.S)
        rows = re.findall(r'<td class="number">(\d+)</td>\s*<td class="number">(\S+) → (\S+)</td>', table)
        assert rows[0] == (f"{found['rows']}", f"{found['champion']:.3f}", f"{found['challenger']:.3f}")
        biggest = max(found["slices"], key=lambda part: abs(part["difference"]["value"]))
        assert rows[1] == (f"{biggest['rows']}", f"{biggest['champion']:.3f}", f"{biggest['challenger']:.3f}")
        assert "of films@v1.1.0 and of" in page
        refused = {"model": "films", "verdict": "keep", "sentence": "Below its floor.", "challenger": "0" * 12}
        record_decision(repository, third.commit, refused)


def live_page_of(root: Path) -> str:
    with running(root, also=lambda app: add_portal(app, root, app.state.service)) as server:
        return server.client.get("/reports/").text
