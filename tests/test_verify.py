"""`mill verify` on a toy line that trains: cloned, run again from raw data, and compared stage by stage."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import verify as verifying
from flows.git import git, tip
from flows.outputs import OutputError
from flows.promotion import find_version
from flows.registry import RegistryError
from flows.reproduction import VerifyError
from flows.tags import create
from flows.verify import verify
from tasks.shards import read_json, write_json, write_text
from tests.conftest import tiny_params
from tests.registered import dvc

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

# Collects the rows of a source, "trains" a tensor on them, and reports; `drift`, a file outside of Git, is what another
# processor would do to it.
STAGE = """
import hashlib, json, shutil, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
stage, model = sys.argv[1:]
drift = Path("DRIFT")
off = float(drift.read_text()) if drift.exists() else 0.0
data, weights = Path(f"data/{model}"), Path(f"models/{model}")
Path(f"reports/{model}").mkdir(parents=True, exist_ok=True)
if stage == "collect":
    (data / "collect").mkdir(parents=True)
    shutil.copy("SOURCE", data / "collect/rows.txt")
if stage == "train":
    rows = (data / "collect/rows.txt").read_text().split()
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "checkpoint").mkdir()
    save_file({"w": np.array([float(row) for row in rows]) * (1 + off)}, weights / "checkpoint/model.safetensors")
    seen = [hashlib.sha256(" ".join(rows[:step]).encode()).hexdigest() for step in range(1, len(rows) + 1)]
    by_step = [f"epoch 1, step {step}: {one[:16]}" for step, one in enumerate(seen, 1)]
    told = {"rows_seen_by_step": by_step, "rows_seen_sha256": seen[-1], "loss": 0.5 * (1 + off)}
    Path(f"reports/{model}/train.json").write_text(json.dumps(told))
    curve = Path(f"reports/{model}/curve")
    curve.mkdir()
    (curve / "loss.png").write_bytes(bytes(range(256)))
    (curve / "loss.csv").write_bytes(b"step,loss\\r\\n1,0.5\\r\\n")
    (curve / "loss.json").write_text(json.dumps({"last": 0.5 * (1 + off)}))
if stage == "deploy":
    w = load_file(weights / "checkpoint/model.safetensors")["w"]
    name = hashlib.sha256(model.encode() + w.tobytes()).hexdigest()
    told = {"version": "sha-" + name[:8], "verdict": "accepted", "reasons": [], "mean": w.mean()}
    Path(f"reports/{model}/deploy.json").write_text(json.dumps(told))
print(stage, "of", model, "ran", flush=True)
"""

LINE = """stages:
  collect:
    foreach: ${models}
    do:
      cmd: python stage.py collect ${key}
      deps: ["${item.pin}", stage.py]
      outs: [{"data/${key}/collect": {persist: true}}]
  train:
    foreach: ${models}
    do:
      cmd: python stage.py train ${key}
      deps: ["data/${key}/collect", stage.py]
      outs:
        - models/${key}/checkpoint
        - reports/${key}/train.json: {cache: false}
        - reports/${key}/curve: {cache: false}
  deploy:
    foreach: ${models}
    do:
      cmd: python stage.py deploy ${key}
      deps: ["models/${key}/checkpoint"]
      outs: [{"reports/${key}/deploy.json": {cache: false}}]
"""

ROWS = "3.0 1.0 2.0 5.0\n"


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A repository of two models, whose line ran once; one has its source in Git, the other outside of it."""
    folder = tmp_path_factory.mktemp("verify")
    root = folder / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "t")
    git(root, "config", "user.email", "t@localhost")
    params = tiny_params().model_dump(mode="json", by_alias=True, serialize_as_any=True)
    models = {}
    for model, pin, source in (("films", "rows.txt", "rows.txt"), ("books", "data/books/source.json", "away/rows.txt")):
        models[model] = {**params, "pin": pin, "collect": params["collect"] | {"path": source}}
        write_text(root / source, ROWS)
    write_json(root / "params.yaml", {"models": models})
    write_json(root / "data/books/source.json", {"partitions": []})
    write_text(root / "dvc.yaml", LINE)
    stage = STAGE.replace("DRIFT", str(folder / "drift")).replace(
        '"SOURCE"', '"rows.txt" if model == "films" else "away/rows.txt"'
    )
    write_text(root / "stage.py", stage)
    write_text(root / "requirements.lock", f"# exact\ndvc=={importlib.metadata.version('dvc')}\n")
    write_text(root / ".gitignore", "/.mill/\n/models/\n/data/*/collect\n/away/\n")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n    autostage = false\n")
    write_text(root / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    dvc(root, "repro", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    for model in models:
        release = read_json(root / f"reports/{model}/deploy.json")["version"]
        create(root, f"{model}@v1.0.0", tip(root, "HEAD"), model, {"release": release, "metric": None, "why": ""})
    return root


@pytest.fixture
def repository(toy, tmp_path, monkeypatch) -> Path:
    """A copy of one's own, whose drift is its own as well."""
    root = Path(shutil.copytree(toy, tmp_path / "repository", symlinks=True))
    drift = toy.parent / "drift"
    drift.unlink(missing_ok=True)
    return root


def drift(toy: Path, off: float) -> None:
    write_text(toy.parent / "drift", str(off))


def certificate(root: Path, name: str = "films@v1.0.0") -> dict:
    return read_json(root / ".mill/certificates" / name / "certificate.json")


def levels(root: Path, name: str = "films@v1.0.0") -> dict[str, str]:
    return {stage["name"]: stage["level"] for stage in certificate(root, name)["stages"]}


def test_a_line_that_computes_the_same_is_certified_to_the_bit(repository, capsys):
    write_text(repository / "stage.py", "half an idea")
    before = git(repository, "status", "--porcelain"), git(repository, "for-each-ref")
    assert verify(repository, "films@v1.0.0", here=True) == 0
    assert (git(repository, "status", "--porcelain"), git(repository, "for-each-ref")) == before
    assert levels(repository) == dict.fromkeys(("collect@films", "train@films", "deploy@films"), "identical")
    found = certificate(repository)
    assert found["verdict"] == "films@v1.0.0 was made again, to the bit."
    (seen,) = found["rows_seen"]
    assert seen["stage"] == "train@films"
    assert seen["before"] == seen["after"] != ""
    assert found["commit"] == tip(repository, "films@v1.0.0")
    printed = capsys.readouterr().out
    assert "train of films ran" in printed
    assert "of books" not in printed
    assert "train@films saw the same data in the same order" in printed
    assert (repository / ".mill/certificates/films@v1.0.0/certificate.txt").read_text() in printed
    assert list((repository / ".mill/verify").iterdir()) == []
    where = found["where"]
    assert where["packages"]["dvc"] == importlib.metadata.version("dvc")
    assert where["python"] == ".".join(map(str, sys.version_info[:3]))
    assert where["processor"]["cores"] >= 1
    assert where["processor"]["name"]
    assert where["threads"]["model"] == tiny_params().threads
    assert found["tolerances"]["tensor"] == {"share_of_norm": 0.02}


def test_where_sums_round_otherwise_the_figures_stand_beside_the_tolerance(repository, toy, capsys):
    drift(toy, 0.001)
    assert verify(repository, "films@v1.0.0", here=True) == 0
    assert levels(repository) == {
        "collect@films": "identical",
        "train@films": "within tolerance",
        "deploy@films": "within tolerance",
    }
    found = certificate(repository)
    assert found["verdict"] == "films@v1.0.0 was made again, within tolerance, from train@films on."
    weights = next(file for file in found["stages"][1]["files"] if file["file"].endswith("model.safetensors"))
    assert weights["largest"] == pytest.approx(0.05, abs=0.001)  # 0.1 % of the norm, of the 2 % that are tolerated
    assert "at most by 10% of what is tolerated" in capsys.readouterr().out


def test_a_folder_of_git_is_compared_byte_by_byte_whatever_is_in_it(repository, toy):
    drift(toy, 0.001)
    assert verify(repository, "films@v1.0.0", here=True) == 0
    files = {file["file"]: file["level"] for file in certificate(repository)["stages"][1]["files"]}
    assert {name.rpartition("/")[2]: level for name, level in files.items() if "/curve/" in name} == {
        "loss.png": "identical",
        "loss.csv": "identical",
        "loss.json": "within tolerance",
    }


def test_what_differs_first_is_named_with_its_file_and_figures(repository, toy, capsys):
    drift(toy, 0.5)
    assert verify(repository, "films@v1.0.0", here=True) == 1
    assert levels(repository)["train@films"] == levels(repository)["deploy@films"] == "different"
    verdict = certificate(repository)["verdict"]
    assert verdict.startswith("films@v1.0.0 was not made again: train@films is different.")
    assert "models/films/checkpoint/model.safetensors: w: " in verdict
    assert verdict in capsys.readouterr().out


def test_other_rows_are_no_matter_of_tolerance_and_the_step_is_named_from_which_they_are_others(repository, capsys):
    commit = tampered(repository, ("rows.txt", "3.0 1.0 2.001 5.0\n"))
    create(repository, "films@v1.1.0", commit, "films", {"release": "sha-11111111", "metric": None, "why": ""})
    assert verify(repository, "films@v1.1.0", here=True) == 1
    found = certificate(repository, "films@v1.1.0")
    (seen,) = found["rows_seen"]
    assert seen["before"] != seen["after"]
    assert seen["part"] == "between epoch 1, step 2 and epoch 1, step 3"
    assert f"other data, or in another order, {seen['part']}" in capsys.readouterr().out
    assert levels(repository, "films@v1.1.0")["collect@films"] == "different"


def test_a_training_that_writes_no_hash_of_its_rows_is_not_certified_though_its_bits_are_the_same(repository):
    stage = repository / "stage.py"
    write_text(stage, stage.read_text().replace('"rows_seen_sha256": seen[-1], ', ""))
    for collected in repository.glob("data/*/collect"):  # which DVC leaves there
        shutil.rmtree(collected)
    dvc(repository, "repro", "-q")
    commit = tampered(repository)
    create(repository, "films@v1.1.0", commit, "films", {"release": "sha-11111111", "metric": None, "why": ""})
    assert verify(repository, "films@v1.1.0", here=True) == 1
    assert set(levels(repository, "films@v1.1.0").values()) == {"identical"}
    verdict = certificate(repository, "films@v1.1.0")["verdict"]
    assert verdict.startswith("films@v1.1.0 is not certified. train@films has written no hash of the rows that it saw")
    assert "its report needs rows_seen_sha256" in verdict


def tampered(root: Path, *files: tuple[str, str]) -> str:
    """A commit in which files are others than those that the line ran with."""
    for name, text in files:
        write_text(root / name, text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "tampered")
    return git(root, "rev-parse", "HEAD")


def test_what_was_collected_elsewhere_is_raw_data_and_taken_by_its_hash(repository):
    write_text(repository / "away/rows.txt", "9.0\n")
    assert verify(repository, "books@v1.0.0", here=True) == 0
    assert levels(repository, "books@v1.0.0") == {
        "collect@books": "taken",
        "train@books": "identical",
        "deploy@books": "identical",
    }
    assert "may have moved on" in certificate(repository, "books@v1.0.0")["stages"][0]["why"]


def test_where_the_raw_data_is_gone_nothing_is_certified(repository):
    shutil.rmtree(repository / ".dvc/cache")
    with pytest.raises(OutputError, match="data/books/collect of"):
        verify(repository, "books@v1.0.0", here=True)
    assert list((repository / ".mill/verify").iterdir()) == []
    assert verify(repository, "films@v1.0.0", here=True) == 0  # nothing of it is needed where the bits are the same


def test_what_cannot_be_compared_any_more_is_different(repository, toy):
    shutil.rmtree(repository / ".dvc/cache")
    drift(toy, 0.001)
    assert verify(repository, "films@v1.0.0", here=True) == 1
    first = certificate(repository)["stages"][1]["files"][0]["first"]
    assert "is not in DVC's cache" in first["now"]


def test_a_stage_that_fails_is_not_taken_for_one_that_agrees(repository):
    broken = (repository / "stage.py").read_text() + "\nif stage == 'train': sys.exit('no memory')\n"
    commit = tampered(repository, ("stage.py", broken))
    create(repository, "films@v1.1.0", commit, "films", {"release": "sha-11111111", "metric": None, "why": ""})
    assert verify(repository, "films@v1.1.0", here=True) == 1
    assert levels(repository, "films@v1.1.0") == {
        "collect@films": "identical",
        "train@films": "not run",
        "deploy@films": "not run",
    }


def test_another_environment_is_refused_here(repository):
    commit = tampered(repository, ("requirements.lock", "dvc==1.0\nnumpy==1.0\nnot-there==1.0  # a reason\n"))
    create(repository, "films@v1.1.0", commit, "films", {"release": "sha-11111111", "metric": None, "why": ""})
    with pytest.raises(VerifyError, match=r"dvc is .*, and not 1\.0; numpy is .*; not-there is not there"):
        verify(repository, "films@v1.1.0", here=True)


def test_what_is_no_version_or_can_no_longer_be_made_says_so(repository, tmp_path, monkeypatch):
    with pytest.raises(RegistryError, match=r"Did you mean 'films@v1\.0\.0'"):
        verify(repository, "films@v1.0.1", here=True)
    with pytest.raises(RegistryError, match="is no Git repository"):
        verify(tmp_path, "films@v1.0.0", here=True)
    purged = {"seen": {"entry": {"films@v1.0.0": "train"}}, "data": [], "rows": [], "purged": True}
    create(repository, "forgotten/films/1", tip(repository, "HEAD"), "rows were forgotten", purged)
    with pytest.raises(VerifyError, match=r"films@v1\.0\.0 cannot be made again"):
        verify(repository, "films@v1.0.0", here=True)


def test_with_keep_the_line_stays_and_what_a_killed_one_left_goes(repository, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(verifying, "run_again", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        verify(repository, "films@v1.0.0", here=True)
    assert len(list((repository / ".mill/verify").iterdir())) == 1
    assert verify(repository, "films@v1.0.0", here=True, keep=True) == 0
    (kept,) = (repository / ".mill/verify").iterdir()
    assert (kept / "line/models/films/checkpoint/model.safetensors").exists()
    assert verify(repository, "films@v1.0.0", here=True) == 0
    assert [kept] == list((repository / ".mill/verify").iterdir())


def test_a_challenger_is_verified_by_its_releases_hash(repository):
    version = find_version(repository, "films@v1.0.0")
    git(repository, "tag", "-d", version.tag)
    assert verify(repository, version.release, here=True) == 0
    assert certificate(repository, version.release)["release"] == version.release


@pytest.mark.slow
def test_in_an_environment_of_its_own_made_from_the_lock_alone(repository):
    """As it is meant to be: with nothing of this environment."""
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude", "modelmill"]
    have = dict(line.split("==") for line in subprocess.check_output(freeze, text=True).split() if "==" in line)
    wanted = needed_by("dvc", "safetensors", "numpy", have=have)
    commit = tampered(repository, ("requirements.lock", "".join(f"{name}=={have[name]}\n" for name in sorted(wanted))))
    create(repository, "films@v1.1.0", commit, "films", {"release": "sha-11111111", "metric": None, "why": ""})
    assert verify(repository, "films@v1.1.0") == 0
    packages = certificate(repository, "films@v1.1.0")["where"]["packages"]
    assert packages["dvc"] == have["dvc"]
    assert "torch" not in {name.lower() for name in packages}
    assert json.dumps(levels(repository, "films@v1.1.0")).count("identical") == 3


def needed_by(*names: str, have: dict[str, str]) -> set[str]:
    """Packages and all that they need, by the names that pip freeze gives them."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    called = {canonicalize_name(name): name for name in have}
    found, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in called and called[name] not in found:
            found.add(called[name])
            for line in importlib.metadata.requires(called[name]) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    waiting.append(canonicalize_name(needed.name))
    return found
