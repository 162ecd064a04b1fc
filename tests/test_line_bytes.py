"""After the line, dvc.lock has the bytes that `dvc repro` writes, and the same commands were run."""

import shutil
from pathlib import Path

import pytest

from flows.flow_run import Ended
from tasks.shards import write_text
from tests import line_toy as toy

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("served")]

DVC_YAML = r"""
vars: [{greeting: hello}]
stages:
  last:                      # stands before what it needs, so that order of files and order of running differ
    cmd: echo last >> $RUNS; cat d-one.txt d-two.txt > last.txt
    deps: [d-one.txt, d-two.txt, sub/made]
    outs: [last.txt]
  code:                      # its output is the same for other comments in the code
    cmd: echo code >> $RUNS; grep -v '^#' code.sh > code.sum
    deps: [code.sh]
    outs: [code.sum]
  collect:
    foreach: ${models}
    do:
      cmd:
        - echo collect-${key} >> $RUNS
        - mkdir -p c-${key}; cp raw-${key}.txt c-${key}/$(cksum < raw-${key}.txt | cut -c1-9)
      deps: ["raw-${key}.txt", code.sum]
      outs: [{"c-${key}": {persist: true}}]
  clean:
    foreach: ${models}
    do:
      cmd:
        - echo clean-${key} >> $RUNS
        - sleep ${item.sleep}; if [ -e fail-${key} ]; then echo cannot clean; exit 3; fi
        - cat c-${key}/* > d-${key}.txt; echo ${item.level} >> d-${key}.txt
        - "echo '{\"rows\": 1}' > m-${key}.json; echo '[{\"x\": 1, \"y\": 2}]' > p-${key}.json"
        - echo ${greeting} > r-${key}.txt
      deps: ["c-${key}"]
      params: ["models.${key}.level"]
      outs: ["d-${key}.txt", {"r-${key}.txt": {cache: false}}]
      metrics: [{"m-${key}.json": {cache: false}}]
      plots: [{"p-${key}.json": {cache: false}}]
  train:
    matrix: {model: [one, two], seed: [1, 2]}
    cmd:
      - echo train-${item.model}-${item.seed} >> $RUNS
      - mkdir t-${item.model}-${item.seed}; cp d-${item.model}.txt t-${item.model}-${item.seed}/weights
    deps: ["d-${item.model}.txt"]
    outs: ["t-${item.model}-${item.seed}"]
  held:
    frozen: true
    cmd: echo held >> $RUNS; cp last.txt held.txt
    deps: [last.txt]
    outs: [held.txt]
  after_held:
    cmd: echo after_held >> $RUNS; cp held.txt after.txt
    deps: [held.txt]
    outs: [after.txt]
  always:
    always_changed: true
    cmd: echo always >> $RUNS; echo 1 > always.txt
    outs: [always.txt]
  callback:
    cmd: echo callback >> $RUNS
"""

SUB = """
stages:
  made:
    wdir: ..
    cmd: echo made >> $RUNS; mkdir -p sub/made; cp code.sum added.txt fetched.txt sub/made
    deps: [code.sum, added.txt, fetched.txt]
    outs: [sub/made]
  alone:
    cmd: echo alone >> $RUNS; pwd | sed 's,.*/,,' > alone.txt; echo "$DVC_STAGE" >> alone.txt
    outs: [alone.txt]
"""

PARAMS = "models:\n  one: {level: 1, sleep: 0.3}\n  two: {level: 1, sleep: 0}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository with a stage of each kind, of which none has run, and two files that DVC tracks."""
    root = tmp_path_factory.mktemp("toy") / "made"
    files = {"dvc.yaml": DVC_YAML, "sub/dvc.yaml": SUB, "params.yaml": PARAMS, "code.sh": "# one\nrun\n"}
    toy.make(root, {**files, "raw-one.txt": "1\n", "raw-two.txt": "2\n"})
    outside = root.parent / "outside.txt"
    write_text(outside, "outside\n")
    write_text(root / "held.txt", "held\n")
    write_text(root / "added.txt", "added\n")
    assert toy.dvc(root, "add", "-q", "added.txt") == 0
    assert toy.dvc(root, "import-url", "-q", str(outside), "fetched.txt") == 0
    assert toy.dvc(root, "unfreeze", "fetched.txt.dvc") == 0
    return root


class Both:
    """The same repository twice: one for the line, one for `dvc repro`."""

    def __init__(self, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.dvcs = toy.twin(made, folder / "ours"), toy.twin(made, folder / "dvcs")
        self._folder, self._patch = folder, monkeypatch

    def run(self, *, fails: bool = False) -> tuple[Ended, list[str]]:
        """Run both, hold them against each other, and give what became of the stages and which commands were run."""
        commands = []
        for name in ("ours", "dvcs"):
            runs = self._folder / f"{name}.runs"
            runs.write_text("")
            self._patch.setenv("RUNS", str(runs))
            if name == "ours":
                ended = toy.line(self.ours)
            else:
                assert (toy.dvc(self.dvcs, "repro", "-q", "--all-pipelines", "--keep-going") != 0) is fails
            commands.append(sorted(runs.read_text().split()))
        assert bool(ended.failed) is fails
        assert commands[0] == commands[1]
        assert toy.written(self.ours) == toy.written(self.dvcs)
        assert toy.recorded_runs(self.ours) == toy.recorded_runs(self.dvcs)
        return ended, commands[0]

    def write(self, name: str, text: str | None) -> None:
        for root in (self.ours, self.dvcs):
            if text is None:
                (root / name).unlink()
            else:
                write_text(root / name, text)


@pytest.mark.long
def test_through_changes_failures_and_the_run_cache_the_bytes_are_those_of_dvc_repro(made, tmp_path, monkeypatch):
    both = Both(made, tmp_path, monkeypatch)
    unsettled = ["always", "callback"]

    ended, commands = both.run()
    assert len(commands) == 15
    assert toy.outcomes(ended)["verified"] == ["held"]
    assert b"clean@one" in (both.ours / "dvc.lock").read_bytes()

    ended, commands = both.run()
    assert commands == unsettled

    both.write("code.sh", "# another comment\nrun\n")
    ended, commands = both.run()
    assert commands == sorted([*unsettled, "code"])
    assert "made" in " ".join(toy.outcomes(ended)["cached"])

    both.write("params.yaml", PARAMS.replace("two: {level: 1", "two: {level: 2"))
    both.write("raw-one.txt", "one\n")
    ended, commands = both.run()
    assert "collect-one" in commands
    assert "collect-two" not in commands

    both.write("params.yaml", PARAMS)
    ended, commands = both.run()
    assert {"train@two-1", "train@two-2", "last"} - set(toy.outcomes(ended)["restored"]) == {"last"}
    assert "clean-two" in commands  # an output that is not to be cached keeps it out of DVC's run cache

    both.write("fail-one", "")
    both.write("raw-one.txt", "three\n")
    both.write("params.yaml", PARAMS.replace("two: {level: 1", "two: {level: 3"))
    ended, commands = both.run(fails=True)
    assert toy.outcomes(ended)["failed"] == ["clean@one"]
    assert toy.outcomes(ended)["not run"] == ["last", "train@one-1", "train@one-2"]
    assert "train-two-1" in commands

    both.write("fail-one", None)
    ended, commands = both.run()
    assert not ended.failed
    assert toy.outcomes(ended)["ran"] == ["always", "callback", "clean@one", "last", "train@one-1", "train@one-2"]

    for root in (both.ours, both.dvcs):
        (root / "last.txt").unlink()
        shutil.rmtree(root / "t-one-1")
    ended, commands = both.run()
    assert commands == unsettled
    assert toy.outcomes(ended)["restored"] == ["last", "train@one-1"]


def test_the_models_that_are_named_are_run_with_all_that_they_need_and_nothing_else(made, tmp_path, monkeypatch):
    both = Both(made, tmp_path, monkeypatch)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    ended = toy.line(both.ours, ["two"])
    assert sorted(ended.results) == ["clean@two", "code", "collect@two", "train@two-1", "train@two-2"]
    for target in ("train@two-1", "train@two-2"):  # of several at once, DVC takes the order of a set
        assert toy.dvc(both.dvcs, "repro", "-q", target) == 0
    assert toy.written(both.ours) == toy.written(both.dvcs)


def test_a_stage_that_is_forced_runs_and_what_depends_on_it_only_where_it_has_changed(made, tmp_path, monkeypatch):
    both = Both(made, tmp_path, monkeypatch)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    toy.line(both.ours, ["two"])
    before = toy.written(both.ours)
    ended = toy.line(both.ours, ["two"], force=["clean"])
    assert toy.outcomes(ended)["ran"] == ["clean@two"]
    assert toy.written(both.ours) == before
