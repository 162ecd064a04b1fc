"""`mill gc`: free the version store and DVC's cache by flows.store of params.yaml, and say what went.

Kept is what a tag in use needs (each champion and the one before it), the newest other versions, every branch and tag
of a person's, every working tree, and what has still to be pushed. Only this machine is freed: remotes keep what they
have.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from flows.git import attempt, check_repository, checked_out, git, tip
from flows.landing import ASK, PROMOTE
from flows.locks import only_one
from flows.params import StoreParams, load_flows
from flows.publish import owed
from flows.registry import champion, champion_before, decisions, models_with_versions, versions
from flows.store import changing, read_live, version_folder
from flows.tags import in_other_stages, promotions
from flows.unused import YOUNG_SECONDS, RetentionError, Unused, is_shared, named_in_commits, named_in_tree, unused
from flows.worktree import clean_up, home_of
from tasks.params import load

if TYPE_CHECKING:
    from dvc.repo import Repo

_TAGS = "refs/tags/"
_RETRAIN = "refs/heads/retrain/"


@dataclass
class Plan:
    """What would go, and why the rest stays."""

    folders: dict[Path, str] = field(default_factory=dict)  # and what each is, in words
    sizes: dict[Path, int] = field(default_factory=dict)  # of the folders, in bytes
    branches: dict[str, str] = field(default_factory=dict)  # and the commit that each is at
    objects: Unused | None = None
    kept: list[str] = field(default_factory=list)


def gc(root: Path, *, dry_run: bool, at: datetime | None = None) -> str:
    """Free what no rule keeps, and say what went and what stays; with `dry_run` only say it. `at` is now, without.

    Raises Busy where a retrain runs, and RetentionError where nobody can say what is needed; then nothing has gone.
    """
    check_repository(root)
    home = home_of(root)
    stored = home / ".mill" / "versions"
    folders = [folder.name for folder in stored.iterdir() if folder.is_dir()] if stored.is_dir() else []
    models = sorted({*load(home / "params.yaml").models, *models_with_versions(home), *folders})
    params = load_flows(home / "params.yaml").store
    with _alone(home, models) as repo:
        if not dry_run:
            clean_up(home)
        plan = _plan(home, repo, models, params, at or datetime.now(UTC))
        if not dry_run:
            _carry_out(home, plan)
    return _said(plan, dry_run)


@contextlib.contextmanager
def _alone(home: Path, models: list[str]) -> Iterator["Repo"]:
    """Nobody retrains, promotes or records in DVC meanwhile."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    with contextlib.ExitStack() as held:
        for model in models:
            held.enter_context(only_one(home, model, "mill gc"))
        held.enter_context(changing(home))
        repo = held.enter_context(Repo(str(home)))
        try:
            held.enter_context(repo.lock)
        except LockError:
            raise RetentionError(f"Another dvc command is running in {home}. Run `mill gc` after it.") from None
        yield repo


def _plan(home: Path, repo: "Repo", models: list[str], params: StoreParams, at: datetime) -> Plan:
    plan, since = Plan(), at - timedelta(days=params.keep_refused_days)
    commits: set[str] = set()
    for model in models:
        commits |= _versions(home, model, params.keep_versions, plan)
        commits |= _decided(home, model, since, plan)
    plan.folders |= _leftovers(home, since)
    plan.sizes = {folder: _bytes(folder) for folder in plan.folders}
    commits |= _refs(home, models, set(plan.branches))
    commits |= {commit for commit in owed(home) if tip(home, commit)}
    if is_shared(repo):
        place = Path(repo.cache.local.path).parents[1]
        plan.kept.append(f"DVC's cache in {place}, which other repositories may use: `dvc gc --projects` frees it")
    else:
        named = named_in_commits(home, commits).union(*(named_in_tree(tree) for tree in _trees(home)))
        plan.objects = unused(repo, named)
    return plan


def _versions(home: Path, model: str, num_kept: int, plan: Plan) -> set[str]:
    """The commits of the versions that are kept; what of the version store is not kept goes into the plan."""
    known, now = versions(home, model), champion(home, model)
    in_use = [version for version in (now, champion_before(home, model)) if version]
    elsewhere = in_other_stages(home, model)
    in_use += [version for version in known if version.commit in elsewhere and version not in in_use]
    others = [version for version in known if version not in in_use]
    kept = [*in_use, *others[-num_kept:]]
    plan.kept += [f"{one.tag}{', the champion' if one == now else ''}" for one in known if one in kept]
    releases = {one.release for one in kept} | {read_live(home).get(model, {}).get("version")}
    names = {one.release: one.tag for one in known}
    folders = sorted(version_folder(home, model, "").glob("[!.]*"))
    # Put in use by `mill run` alone, one after the other.
    untagged = [one for one in folders if one.name not in names and one.name not in releases]
    untagged.sort(key=lambda folder: folder.stat().st_mtime)
    stay = releases | {folder.name for folder in untagged[-num_kept:]}
    for folder in folders:
        if folder.name not in stay:
            plan.folders[folder] = f"{names.get(folder.name, model)}, {folder.name} in the version store"
    return {one.commit for one in kept} | elsewhere


def _decided(home: Path, model: str, since: datetime, plan: Plan) -> set[str]:
    """The commits of challengers that are young, or still to be landed; the branches of others go into the plan."""
    kept, told = set(), decisions(home, model)
    promoted = {tag.commit for tag in promotions(home, model)}
    for decision in told:
        waits = decision["verdict"] in (PROMOTE, ASK)  # for its landing, or for a person
        pending = decision is told[-1] and waits and decision["commit"] not in promoted
        if decision["when"] > since or pending:
            kept.add(str(decision["commit"]))
    old = {str(decision["commit"]) for decision in told} - kept
    for line in git(home, "for-each-ref", "--format=%(refname) %(objectname)", f"{_RETRAIN}{model}/").splitlines():
        name, commit = line.split(" ")
        if commit in old and checked_out(home, name.removeprefix("refs/heads/")) is None:
            plan.branches[name] = commit
    return kept


def _refs(home: Path, models: list[str], going: set[str]) -> set[str]:
    """Where every ref points that is no tag of the registry's and no branch that goes; and every stash."""
    name_of = "|".join(re.escape(model) for model in models)
    own = re.compile(
        rf"{_TAGS}((decision|forgotten)/({name_of})/.+|({name_of})(@v[0-9]+\.[0-9]+\.[0-9]+(!.*)?|#.+#[0-9]+))"
    )
    found = set()
    form = "--format=%(refname) %(objecttype) %(objectname) %(*objecttype) %(*objectname)"
    for line in git(home, "for-each-ref", form).splitlines():
        name, *facts = line.split(" ")
        is_retrains = name.startswith("refs/remotes/") and "/retrain/" in name
        if not own.fullmatch(name) and name not in going and not is_retrains and "commit" in facts:
            found.add(facts[facts.index("commit") + 1])
    stashed = attempt(home, "stash", "list", "--format=%H").stdout.split()
    heads = (tip(tree, "HEAD") for tree in _trees(home))
    return found | set(stashed) | {head for head in heads if head}


def _trees(home: Path) -> list[Path]:
    """Every working tree of the repository that is there."""
    lines = git(home, "worktree", "list", "--porcelain").splitlines()
    trees = (Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree "))
    return [tree for tree in trees if tree.is_dir()]


def _leftovers(home: Path, since: datetime) -> dict[Path, str]:
    """What runs that were killed have left in `.mill`, and nobody has gone on from since."""
    mill, found = home / ".mill", {}
    for folder in (mill / "versions").glob("*/.*"):
        # What was moved aside is put back, where the process was killed before the new one had taken its place.
        if folder.name.startswith(".unfinished-") or folder.with_name(folder.name.split("-", 2)[-1]).exists():
            found[folder] = "half a version in the store, of a process that was killed"
    places = (mill / "work", mill / "retrain" / "work", mill / "verify")
    for folder in (one for place in places if place.is_dir() for one in place.iterdir()):
        if datetime.fromtimestamp(_newest(folder), UTC) < since:
            found[folder] = f"{folder.relative_to(home)}, to which nobody has come back"
    return found


def _newest(path: Path) -> float:
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def _carry_out(home: Path, plan: Plan) -> None:
    # First the names and then what they name: stopped in between, nothing that is still named has lost any of it.
    for name, commit in plan.branches.items():
        git(home, "update-ref", "-d", name, commit)
    for folder in plan.folders:
        _remove(folder)
    if plan.objects is not None:
        plan.objects.remove()


def _remove(folder: Path) -> None:
    """Take a folder away in one step, as far as others see."""
    going = folder
    if not folder.name.startswith("."):
        going = folder.with_name(f".unfinished-gc-{folder.name}")
        folder.rename(going)
    shutil.rmtree(going) if going.is_dir() else going.unlink()


def _bytes(path: Path) -> int:
    return sum(one.lstat().st_size for one in (path, *path.rglob("*")) if one.is_file())


def _said(plan: Plan, dry_run: bool) -> str:
    objects = plan.objects
    num_bytes = sum(plan.sizes.values()) + (objects.num_bytes if objects else 0)
    lines = [f"  {what}: {_mb(plan.sizes[folder])}" for folder, what in plan.folders.items()]
    if objects and objects.files:
        lines.append(f"  {len(objects.files):,} objects in DVC's cache: {_mb(objects.num_bytes)}")
    lines += [f"  the branch {name.removeprefix('refs/heads/')}" for name in plan.branches]
    freed = f"{'This would free' if dry_run else 'Freed'} {_mb(num_bytes)}:" if lines else "There is nothing to free."
    if plan.kept:
        lines.append(f"Kept: {'; '.join(plan.kept)}.")
    if objects and objects.num_young:
        hours = YOUNG_SECONDS // 3600
        lines.append(
            f"{objects.num_young:,} objects in DVC's cache that nothing names are younger than {hours} hours, and may "
            "belong to a run. They stay for now."
        )
    return "\n".join([freed, *lines])


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
