"""The clone in which the demonstration plays: what is committed here, with parameters and ports of its own."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from flows.git import git

MODEL = "reviews"


def prepare(home: Path, folder: Path) -> Path:
    """A clone of what is committed here, with the parameters of the demonstration; its path."""
    root = folder / "repository"
    if root.exists():
        subprocess.run([sys.executable, "-m", "flows.cli", "down"], cwd=root, check=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    git(home, "clone", "-q", str(home), str(root))
    git(root, "checkout", "-q", "-B", "main")
    git(root, "remote", "remove", "origin")
    git(root, "config", "user.name", "modelmill")
    git(root, "config", "user.email", "demo@localhost")
    _change_params(root / "params.yaml")
    git(root, "commit", "-qam", "Learn from labelled predictions, and look only when asked")
    return root


def _change_params(file: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load(file.read_text(encoding="utf-8"))
    model, flows = params["models"][MODEL], params["flows"]
    # The domain of a row, so that the gate and the evaluation tell how each fares. It is that of the labelled rows.
    model["collect"]["columns"]["domain"] = "domain"
    columns = {"id": "id", "text": "text", "label": "label", "domain": "'tweets'"}
    model["feedback"] = {"model": MODEL, "url": None, "where": None, "rows_per_shard": 50000, "columns": columns}
    model["evaluate"]["slices"].append("domain")
    model["train"]["epochs"] = 1  # as good as two for this, and two cores are slow
    ours = flows["models"][MODEL]
    ours["retrain"] |= {"cron": "0 3 1 1 *", "silence_hours": 9000, "cool_down_hours": 0}
    ours["monitor"] |= {"cron": "0 3 1 1 *", "silence_hours": 9000}
    for name in ("server", "serve", "evidently"):
        flows[name]["port"] = _free_port()
    with file.open("w", encoding="utf-8") as unfinished:
        yaml.dump(params, unfinished)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
