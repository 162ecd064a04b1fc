"""`make demo`: what it prepares, and in `make test-slow` all of it."""

import re
import subprocess
import sys

import pytest

from flows.demo_clone import prepare
from flows.git import git
from flows.params import load_flows
from tasks.params import load
from tests.conftest import REPOSITORY


def test_it_plays_in_a_clone_whose_parameters_are_valid_and_whose_ports_are_its_own(tmp_path):
    before = git(REPOSITORY, "status", "--porcelain"), git(REPOSITORY, "for-each-ref")
    root = prepare(REPOSITORY, tmp_path / "demo")
    params, flows = load(root / "params.yaml"), load_flows(root / "params.yaml")
    assert params.models["reviews"].feedback is not None
    shipped = load_flows(REPOSITORY / "params.yaml")
    assert {flows.server.port, flows.serve.port}.isdisjoint({shipped.server.port, shipped.serve.port})
    assert (git(root, "status", "--porcelain"), git(root, "remote")) == ("", "")
    assert (git(REPOSITORY, "status", "--porcelain"), git(REPOSITORY, "for-each-ref")) == before


def test_what_an_earlier_play_left_is_taken_away(tmp_path):
    root = prepare(REPOSITORY, tmp_path / "demo")
    (root.parent / "labels.csv").write_text("id,label\n")
    again = prepare(REPOSITORY, tmp_path / "demo")
    assert [file.name for file in again.parent.iterdir()] == ["repository"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_loop_ends_with_a_second_version_that_reads_tweets_better():
    done = subprocess.run(
        [sys.executable, "-m", "flows.demo"], cwd=REPOSITORY, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tweets = re.search(r"tweets +(\S+) → (\S+) of 1,000 right; difference \S+ \((\S+) to", done.stdout)
    assert tweets is not None
    assert float(tweets[3]) > 0
    shown = re.search(r"The portal shows tweets (\S+) → (\S+) of [\d,]+ rows", done.stdout)
    assert shown is not None
    assert float(shown[2]) > float(shown[1])
    # Whether it keeps to them is what this line of `make demo` says on a machine that does nothing else.
    assert re.search(r"Took \d+:\d\d, of 15 minutes at most", done.stdout) is not None
