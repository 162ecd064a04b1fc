"""What retraining made, brought to where others get it: the data by DVC to its remote, the history by Git to its own.

`.mill/unpushed` names the commits that still have to go out. A commit is noted before anything is sent and struck
off after all of it has arrived, so that neither a kill nor a remote that is away for a night loses one. Where DVC knows
no remote, `.mill/unsent` keeps the commits: one that is added later gets what the cache still has of the champions.
"""

import contextlib
import fcntl
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.git import LIVE, GitError, attempt, check_live_is_free, git, tip
from flows.merge import merge_by_model
from flows.tags import promotions
from flows.worktree import home_of
from tasks.shards import read_json, write_json

# A remote that does not answer is a remote that is away; nobody is there to answer ssh's questions.
_PATIENCE = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30")
_SSH = "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=15 -oServerAliveCountMax=2"

# So often what another clone has pushed meanwhile is merged, and the push tried again.
_ATTEMPTS = 3


def owe(root: Path, commit: str) -> None:
    """Note that a commit, its data and its tags have to go out."""
    with _notes(root) as file:
        noted = _read(file)
        if commit not in noted:
            write_json(file, [*noted, commit])


def owed(root: Path) -> list[str]:
    """The commits that still have to go out."""
    return _read(home_of(root) / ".mill" / "unpushed")


def publish(root: Path, at: Path | None = None) -> str:
    """Send out all that is noted, and say in a sentence what came of it; empty where there is nothing to send.

    `at` is the worktree from which DVC reads, the main checkout without: there somebody's own command may hold its
    lock. Data goes before history, since a version that others see should be one that they can fetch. A remote that
    fails is said and not raised.
    """
    home = home_of(root)
    with _notes(root) as file:
        waiting = [commit for commit in _read(file) if tip(home, commit)]
        if not waiting:
            file.unlink(missing_ok=True)
            return ""
        config = _config(at or home)
        store = str(config.get("core", {}).get("remote") or "")
        failure = _push_data(at or home, store, waiting)
        remote = _remote(home)
        if not failure and remote:
            failure = _push_history(at or home, home, remote)
        if failure:
            return f"Not pushed: {failure} It is noted in {file}, and tried again with the next retrain."
        if not (undecided := _no_default(config)):
            if not store:
                _keep_for_later(home, waiting)
            file.unlink()
        late = _push_what_was_kept(at or home, home, store) if store else ""
    places = " and ".join([f"the DVC remote {store}"] * bool(store) + [f"the Git remote {remote}"] * bool(remote))
    return " ".join(said for said in (f"Pushed to {places}." if places else "", undecided, late) if said)


def fetch_tags(home: Path) -> str:
    """Fetch what other clones have decided and promoted; why not, where that fails. Empty without a remote.

    Tags alone: what a person looks at, branches of the remote and FETCH_HEAD, stays as it is.
    """
    remote = _remote(home)
    if not remote:
        return ""
    done = attempt(
        home, *_patient(home), "fetch", "--no-write-fetch-head", "--no-tags", remote, "refs/tags/*:refs/tags/*"
    )
    if not done.returncode:
        return ""
    others = re.findall(r"^ ! \[rejected\] +(\S+)", done.stderr, re.MULTILINE)
    if others:
        return (
            f"The Git remote {remote} has other tags of these names than this clone, which keeps its own: "
            f"{', '.join(others)}. Delete those that are wrong, on either side."
        )
    return f"What other machines have promoted cannot be fetched from the Git remote {remote}: {_said(done.stderr)}"


def no_default_of(folder: Path) -> str:
    """That DVC knows remotes and none of them as the default, so that data goes to none; empty where that is not so."""
    return _no_default(_config(folder))


def _no_default(config: Mapping[str, Any]) -> str:
    names = sorted(config.get("remote", {}))
    if not names or config.get("core", {}).get("remote"):
        return ""
    return (
        f"Retraining's data is not pushed: DVC knows the remote {' and '.join(names)}, and none is the default. `dvc "
        f"remote default {names[0]}` makes it that, and the next retrain pushes what waits."
    )


def _config(folder: Path) -> Mapping[str, Any]:
    """DVC's configuration, as it is in a checkout."""
    from dvc.config import Config

    config: Mapping[str, Any] = Config(dvc_dir=str(folder / ".dvc"))
    return config


def _kept(home: Path) -> Path:
    """The commits whose data went nowhere, as DVC knew no remote."""
    return home / ".mill" / "unsent"


def _keep_for_later(home: Path, commits: Sequence[str]) -> None:
    kept = _read(_kept(home))
    write_json(_kept(home), [*kept, *(commit for commit in commits if commit not in kept)])


def _push_what_was_kept(at: Path, home: Path, store: str) -> str:
    """Send the data of champions from the time before there was a DVC remote; why not, where that fails.

    What of it is no longer in the cache is nowhere else either, and stops nothing.
    """
    kept = _read(_kept(home))
    champions = {tag.commit for model in _models(home) for tag in promotions(home, model)}
    failure = _push_data(at, store, [commit for commit in kept if commit in champions], what_there_is=True)
    if failure:
        return f"The data of champions from before there was a DVC remote is not pushed yet: {failure}"
    _kept(home).unlink(missing_ok=True)
    return ""


def _models(home: Path) -> list[str]:
    return sorted({tag.split("@v")[0] for tag in git(home, "tag", "--list", "*@v*").splitlines()})


@contextlib.contextmanager
def _notes(root: Path) -> Iterator[Path]:
    """The file of what is owed, held alone."""
    file = home_of(root) / ".mill" / "unpushed"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name("unpushed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file


def _read(file: Path) -> list[str]:
    return list(read_json(file)) if file.exists() else []


def _push_data(at: Path, store: str, commits: Sequence[str], *, what_there_is: bool = False) -> str:
    """Why the data of the commits is not in the DVC remote yet; empty once it is, or where there is none.

    With `what_there_is` nothing is said of what neither the cache nor the remote has.
    """
    if not store or not commits:
        return ""
    from dvc.exceptions import UploadError
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(at)) as repo, repo.lock:
            wanted = set()
            # DVC's own push by revisions takes a remote's relative path for one below the root of the disk.
            for _ in repo.brancher(revs=list(commits), workspace=False):
                wanted |= set().union(*repo.index.used_objs(push=True, force=what_there_is).values())
            failed = repo.cloud.push(wanted, remote=store).failed
            if failed:
                raise UploadError(len(failed))
    except UploadError as error:
        return f"{error.amount} files did not reach the DVC remote {store}; `dvc push` says why."
    except LockError:
        return f"another dvc command is running in {at}."
    except Exception as error:  # what a storage's own library raises where it is away or refuses
        return f"the DVC remote {store} says: {_first_line(error)}"
    return ""


def _remote(home: Path) -> str:
    """The Git remote that history goes to: what Git is told, else origin, else the only one. Empty without."""
    for key in (f"branch.{LIVE}.pushRemote", "remote.pushDefault", f"branch.{LIVE}.remote"):
        named = attempt(home, "config", key).stdout.strip()
        if named:
            return named
    names = git(home, "remote").split()
    return "origin" if "origin" in names else names[0] if len(names) == 1 else ""


def _push_history(at: Path, home: Path, remote: str, attempts: int = _ATTEMPTS) -> str:
    """Push live, the retrain branches and the tags of versions, promotions, decisions and what was forgotten.

    Why not, where it fails. What another clone has put on `live` is merged by model first, so many times at most.
    """
    wanted = ["refs/heads/retrain/*", "refs/tags/decision/*", "refs/tags/forgotten/*"]
    wanted += [f"refs/tags/{model}{kind}*" for model in _models(home) for kind in ("@", "#")]
    wanted += [f"refs/heads/{LIVE}"] if tip(home, f"refs/heads/{LIVE}") else []
    done = attempt(
        at,
        *_patient(home),
        "push",
        "--porcelain",
        remote,
        *(f"{name}:{name}" for name in wanted),
        hooks=True,
    )
    if not done.returncode:
        return ""
    refused = [line for line in done.stdout.splitlines() if line.startswith("!")]
    if any(f"refs/heads/{LIVE}:" in line and ("fetch first" in line or "non-fast" in line) for line in refused):
        if not attempts:
            return f"`{LIVE}` of the Git remote {remote} moves faster than it can be merged with."
        return _take_in(home, remote) or _push_history(at, home, remote, attempts - 1)
    if refused:
        _, names, why = (*refused[0].split("\t"), "", "")[:3]
        said = f"the Git remote {remote} refuses {names.split(':')[0]}: {why}. {_said(done.stderr)}".rstrip()
        return f"{said} Whoever looks after it has to let this clone push `{LIVE}`, retrain/* and tags."
    return f"the Git remote {remote} cannot be reached: {_said(done.stderr)}"


def _patient(home: Path) -> list[str]:
    """Git's options for a remote that may be away, and for ssh without anybody to answer it."""
    has_own = attempt(home, "config", "core.sshCommand").returncode == 0
    return [*_PATIENCE, *(() if has_own else ("-c", f"core.sshCommand={_SSH}"))]


def _take_in(home: Path, remote: str) -> str:
    """Merge the remote's `live` into the one here; why not, where that fails."""
    theirs = f"refs/remotes/{remote}/{LIVE}"
    fetched = attempt(home, *_patient(home), "fetch", "--quiet", remote, f"+refs/heads/{LIVE}:{theirs}")
    if fetched.returncode:
        return f"the Git remote {remote} cannot be reached: {_said(fetched.stderr)}"
    before = git(home, "rev-parse", f"refs/heads/{LIVE}")
    try:
        check_live_is_free(home)
        after = merge_by_model(home, LIVE, theirs, f"Merge {LIVE} of {remote}")
    except GitError as error:
        return f"another clone retrains as well, and its `{LIVE}` does not go together with the one here. {error}"
    moved = attempt(home, "update-ref", "-m", f"merge {remote}", f"refs/heads/{LIVE}", after, before)
    return f"Git does not move the branch `{LIVE}`: {_said(moved.stderr)}" if moved.returncode else ""


def _said(text: str) -> str:
    """What a remote said to people, or else Git's own first words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    return (next((line for line in told if line), "") or (lines[0] if lines else "")).removeprefix("fatal: ")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
