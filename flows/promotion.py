"""`mill promote` and `mill rollback`: a person says which version is in use, and why; the promotion's tag has both.

What its floors refused, or the gate kept out, takes `--force`, and the tag says what was overridden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.git import LIVE, check_live_is_free, check_repository, main_branch, tip
from flows.landing import put_on_live
from flows.publish import owe, publish
from flows.registry import (
    RegistryError,
    Version,
    champion,
    champion_before,
    decisions,
    models_with_versions,
    promote,
    register,
    release_at,
    told_at,
    versions,
)
from flows.tags import promotions
from flows.worktree import home_of
from tasks.errors import did_you_mean
from tasks.params import load
from tasks.release import Release


@dataclass(frozen=True)
class Wanted:
    """What a person names: a version, or the release of a commit that is none yet."""

    model: str
    commit: str
    release: str
    version: Version | None


def promote_by_name(root: Path, name: str, *, why: str, force: bool = False) -> str:
    """Make a version the champion, by its name, its release's hash or its model's name; what came of it, in a sentence.

    A release that is no version yet becomes one, and its commit comes to `live`. Raises RegistryError where its floors
    or the gate speak against it and `force` is not given; then nothing has changed.
    """
    check_repository(root)
    home = home_of(root)
    if not why.strip():
        raise RegistryError("A promotion needs its reason, which stands in its tag: --why '…'")
    wanted = find_wanted(home, name)
    now = champion(home, wanted.model)
    if wanted.version is not None and wanted.version == now:
        tag = promote(home, now, why=why, force=True)
        return f"{now.tag} is the champion of {now.model} already, by {tag}; its files are in use, and whole."
    check_live_is_free(home)
    release = release_at(home, wanted.model, wanted.commit, wanted.release)
    against = _against(home, wanted, release, now)
    if against and not force:
        raise RegistryError(
            f"{name} is not promoted. {' '.join(against)} To promote it nevertheless: "
            f"mill promote {name} --force --why '…'"
        )
    owe(home, wanted.commit)
    put_on_live(home, wanted.model, wanted.commit)
    version = wanted.version or register(home, wanted.model, wanted.commit, release=release, why=why)
    promote(home, version, why=why, force=force, overrides=against)
    return _said(home, version, now, against)


def rollback(root: Path, model: str, version: str | None, *, why: str) -> str:
    """Put the champion before this one, or a version that was the champion once, back in use; a sentence of it."""
    check_repository(root)
    home = home_of(root)
    now = champion(home, model)
    if now is None:
        raise RegistryError(f"{model} has no champion to roll back.{_did_you_mean_model(home, model)}")
    wanted = version if version is None or "@" in version else f"{model}@{version}"
    target = champion_before(home, model) if wanted is None else find_version(home, wanted)
    if target is None:
        others = ", ".join(one.tag for one in versions(home, model) if one != now) or "there is none"
        raise RegistryError(
            f"{now.tag} is the first champion of {model}. Another version takes mill promote: {others}."
        )
    if target.model != model:
        raise RegistryError(f"{target.tag} is a version of {target.model}, and not of {model}.")
    if target == now:
        raise RegistryError(f"{target.tag} is the champion of {model} already.")
    if not _was_champion(home, target):
        raise RegistryError(
            f"{target.tag} was never the champion, so going there is no rollback: mill promote {target.tag} --why '…'"
        )
    owe(home, target.commit)
    promote(home, target, why=why or f"rolled back from {now.tag}", force=True, rollback=True)
    return _said(home, target, now, [])


def find_version(root: Path, name: str) -> Version:
    """The version of that name, or the champion of a model of that name. Raises RegistryError where there is none."""
    model, at, _ = name.partition("@")
    known = versions(root, model)
    if not at:
        found = champion(root, model)
        if found is not None:
            return found
        latest = f" Its newest version is {known[-1].tag}." if known else ""
        raise RegistryError(f"{model} has no champion.{latest}{_did_you_mean_model(root, model)}")
    for version in known:
        if version.tag == name:
            return version
    if not known:
        raise RegistryError(f"{model} has no version yet.{_did_you_mean_model(root, model)}")
    tags = [version.tag for version in known]
    raise RegistryError(f"There is no version {name}.{did_you_mean(name, tags)} Known: {', '.join(tags[-5:])}.")


def find_wanted(root: Path, name: str) -> Wanted:
    """What a name stands for: a version's or model's, or a release's hash of a decision, of main, live or HEAD."""
    if not name.startswith("sha-"):
        version = find_version(root, name)
        return Wanted(version.model, version.commit, version.release, version)
    models = sorted({*_models(root), *models_with_versions(root)})
    for model in models:
        for version in versions(root, model):
            if version.release == name:
                return Wanted(model, version.commit, name, version)
    for model in models:
        for decision in reversed(decisions(root, model)):
            if decision.get("challenger") == name:
                return Wanted(model, decision["commit"], name, None)
    for commit in _tips(root):
        for model in models:
            if told_at(root, commit, model).get("version") == name:
                return Wanted(model, commit, name, None)
    raise RegistryError(
        f"No version, decision or branch has the release {name}. `mill versions` lists what there is; a release of the "
        "workspace has to be committed first."
    )


def _models(root: Path) -> list[str]:
    return list(load(root / "params.yaml").models)


def _tips(root: Path) -> list[str]:
    found = (tip(root, name) for name in ("HEAD", f"refs/heads/{main_branch(root)}", f"refs/heads/{LIVE}"))
    return [commit for commit in dict.fromkeys(found) if commit]


def _against(home: Path, wanted: Wanted, release: Release, now: Version | None) -> list[str]:
    """What speaks against the promotion, a sentence each. Whatever was the champion once was let in then."""
    if wanted.version is not None and _was_champion(home, wanted.version):
        return []
    reasons = [] if release.accepted else [f"Its floors refused it: {' '.join(release.reasons)}"]
    judged = [one for one in decisions(home, wanted.model) if one.get("challenger") == wanted.release]
    if judged and judged[-1]["verdict"] == "keep" and release.accepted:
        reasons.append(f"The gate kept it out: {judged[-1]['sentence']}")
    if release.accepted and now is not None and not (judged and judged[-1].get("champion") == now.tag):
        reasons.append(_not_compared(judged, now))
    return reasons


def _not_compared(judged: Sequence[Mapping[str, Any]], now: Version) -> str:
    """What was found against another champion, or before there was one, says nothing about the present one."""
    before = (judged[-1].get("champion") or "no champion at all") if judged else ""
    others = f", but with {before}" if before else ""
    return (
        f"The gate has not compared it with {now.tag}, the present champion{others}; `mill retrain {now.model}` would."
    )


def _was_champion(home: Path, version: Version) -> bool:
    return any(tag.commit == version.commit for tag in promotions(home, version.model))


def _said(home: Path, version: Version, before: Version | None, overridden: list[str]) -> str:
    instead = f" instead of {before.tag}" if before else ""
    against = f" Overridden: {' '.join(overridden)}" if overridden else ""
    told = publish(home)
    return f"{version.tag} is the champion of {version.model} now{instead}.{against}{f' {told}' if told else ''}"


def _did_you_mean_model(root: Path, model: str) -> str:
    known = models_with_versions(root)
    if not known:
        return f" No model has a version yet: `mill retrain {model}` makes the first one."
    return "" if model in known else f"{did_you_mean(model, known)} Models with versions: {', '.join(known)}."
