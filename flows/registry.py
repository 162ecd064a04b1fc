"""Versions of models as Git tags: films@v1.1.0 on the commit that made it, films#champion#7 where it was promoted.

The tags follow GTO's conventions, so that its command reads them as well, and carry what is asked of a version later;
reading needs no server and no checkout. What the tags say holds: `.mill/live.json`, which the server reads, follows.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.git import attempt
from flows.outputs import bring
from flows.store import changing, hold, read_live, set_live
from flows.tags import CHAMPION, Tag, assignments, count_of, create, find, names, standing
from flows.worktree import home_of
from tasks.errors import MillError
from tasks.paths import Paths
from tasks.release import Release
from tasks.shards import atomic_folder


class RegistryError(MillError):
    """A version, or a promotion, that cannot be."""


@dataclass(frozen=True)
class Version:
    """A registered version: its name is its tag's. `release` is the hash of what its manifest says."""

    tag: str
    commit: str
    release: str
    model: str
    number: str  # v1.1.0
    when: datetime
    why: str
    metric: Mapping[str, Any] | None  # name, value, low, high


def versions(root: Path, model: str) -> list[Version]:
    """All that are registered, by their numbers."""
    from gto.versions import SemVer

    tags = (tag for tag in find(root, f"{model}@v*") if SemVer.is_valid(tag.name.rpartition("@")[2]))
    return [_version(root, tag) for tag in sorted(tags, key=lambda tag: SemVer(tag.name.rpartition("@")[2]))]


def models_with_versions(root: Path) -> list[str]:
    """Every model that has a version, whether params.yaml still names it or not."""
    return sorted({tag.name.rpartition("@")[0] for tag in find(root, "*@v*")})


def champion(root: Path, model: str) -> Version | None:
    """The version that the tags say is in use."""
    stands = standing(root, model)
    return _promoted(root, model, stands[-1]) if stands else None


def champion_before(root: Path, model: str) -> Version | None:
    """The version that a rollback puts back in use."""
    stands = standing(root, model)
    return _promoted(root, model, stands[-2]) if len(stands) > 1 else None


def register(root: Path, model: str, commit: str, *, release: Release, why: str) -> Version:
    """Give a commit's release the next number, and tag it; the version that it has where it has one.

    Of processes that register at the same time each gets a number of its own. Raises RegistryError where the commit is
    a version already, but with another release.
    """
    home = home_of(root)
    # Alone: of two at once with one commit, each would see that it has no number yet.
    with changing(home):
        while True:
            for version in versions(home, model):
                if version.commit == commit:
                    _check_same(version, release)
                    return version
            number = _next_number(home, model)
            name = release.manifest.get("headline")
            metric = {"name": name, **release.manifest["metrics"][name]} if name else None
            facts = {
                "release": release.version,
                "verdict": release.manifest["verdict"],
                "metric": metric,
                "why": why,
            }
            sentence = f"{model} {number} is {release.version}" + (f", {spoken(metric)}" if metric else "")
            create(home, f"{model}@{number}", commit, sentence, facts)


def promote(
    root: Path,
    version: Version,
    *,
    why: str,
    force: bool = False,
    decision: Mapping[str, Any] | None = None,
    **told: Any,
) -> str:
    """Make a version the champion and put it in use; the promotion's tag, which is the last one where it is champion.

    Its files are in the store and checked before the tag is written, and live.json follows the tag: whatever happens in
    between, `settle` finishes it. `told` goes into the tag. `decision` is the gate's, where it follows from one. Raises
    MillError where the files cannot be had whole, and RegistryError where another has become the champion since the
    decision, or, unless forced, where the release was refused.
    """
    home = home_of(root)
    with changing(home):
        release = _held(home, version.model, version.commit, version.release)
        if not release.accepted and not force:
            raise RegistryError(f"{version.tag} was refused: {' '.join(release.reasons)}")
        stands = standing(home, version.model)
        if decision is not None and not (stands and stands[-1].commit == version.commit):
            _check_stands(champion(home, version.model), decision["champion"], version)
        while not stands or stands[-1].commit != version.commit:
            last = assignments(home, version.model)
            number = 1 + max((count_of(name, "#") for name in names(home, f"{version.model}#*")), default=0)
            before = _promoted(home, version.model, stands[-1]) if stands else None
            facts = {
                "version": version.number,
                "release": version.release,
                "replaces": before.tag if before else None,
                "why": why,
                "forced": force,
                **told,
            }
            sentence = f"{version.tag} is the champion of {version.model}: {why or 'no reason was given'}"
            name = f"{version.model}#{CHAMPION}#{number}"
            # A tag that came from a remote meanwhile takes the number, and is looked at.
            create(home, name, version.commit, sentence, facts, after=last[-1].when if last else None)
            stands = standing(home, version.model)
        _follow(home, version.model)
        return stands[-1].name


def _complain(said: str) -> None:
    print(said, file=sys.stderr)


def settle(root: Path, complain: Callable[[str], None] = _complain) -> list[str]:
    """Put in use what the tags say is the champion of each model, and give a sentence for each that had to be changed.

    So a promotion is finished whose process was killed, or that came with the tags of another clone. A champion whose
    files cannot be had is said, on standard error where nobody takes it, and stops no other.
    """
    home, done = home_of(root), []
    for model in sorted({tag.name.split("#")[0] for tag in find(home, f"*#{CHAMPION}#*")}):
        try:
            with changing(home):
                if _follow(home, model):
                    done.append(f"{model}: {read_live(home)[model]['tag']} is in use now, as its tag says.")
        except MillError as error:
            complain(f"{model}: its champion could not be put in use. {error}")
    return done


def release_at(root: Path, model: str, commit: str, release: str) -> Release:
    """A release that a commit has made, from the version store: it is brought there, and checked, where it is not yet.

    Raises MillError where its files cannot be had whole.
    """
    home = home_of(root)
    with changing(home):
        return _held(home, model, commit, release)


def fetch(root: Path, commit: str, path: str, folder: Path) -> Path:
    """The files of a DVC output as a commit has them, in `folder`, each checked by its hash; `folder` itself.

    They come from DVC's cache, or else its remote. Raises OutputError where neither has them.
    """
    with atomic_folder(folder) as unfinished:
        bring(root, commit, path, unfinished)
    return folder


def record_decision(root: Path, commit: str, decision: Mapping[str, Any]) -> str:
    """Tag a commit with what was decided about it, and give the tag's name: decision/<model>/<n>."""
    model = decision["model"]
    while True:
        taken = (count_of(name, "/") for name in names(root, f"decision/{model}/*"))
        name = f"decision/{model}/{1 + max(taken, default=0)}"
        if create(root, name, commit, f"{model}: {decision['verdict']}. {decision['sentence']}", decision):
            return name


def decisions(root: Path, model: str) -> list[Mapping[str, Any]]:
    """What was decided about the model's challengers, the oldest first: each with its commit, its tag and when."""
    found = (tag for tag in find(root, f"decision/{model}/*") if tag.facts)
    tags = sorted(found, key=lambda tag: count_of(tag.name, "/"))
    return [{**tag.facts, "commit": tag.commit, "tag": tag.name, "when": tag.when} for tag in tags]


def spoken(metric: Mapping[str, Any]) -> str:
    """A metric with its interval, in words."""
    if metric["value"] is None:
        return f"{metric['name']} undefined"
    return f"{metric['name']} {metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def told_at(root: Path, commit: str, model: str, by: str = "deploy") -> Mapping[str, Any]:
    """What `deploy`, or another, reported of the release of a commit; empty where it has no such report."""
    report = Paths(model).report(by).as_posix()
    try:
        found = json.loads(attempt(root, "cat-file", "blob", f"{commit}:{report}").stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _version(root: Path, tag: Tag) -> Version:
    model, _, number = tag.name.rpartition("@")
    release, metric = tag.facts.get("release"), tag.facts.get("metric")
    if release is None:  # made by GTO's own command
        told = told_at(root, tag.commit, model)
        headline = told.get("headline")
        release, metric = told.get("version", ""), {"name": headline["metric"], **headline} if headline else None
    return Version(tag.name, tag.commit, release, model, number, tag.when, tag.facts.get("why", tag.sentence), metric)


def _promoted(root: Path, model: str, promotion: Tag) -> Version:
    for version in versions(root, model):
        if version.commit == promotion.commit:
            return version
    raise RegistryError(
        f"{promotion.name} promotes the commit {promotion.commit[:10]}, which is no version of {model}. Name it: "
        f"gto register {model} {promotion.commit[:10]}"
    )


def _next_number(root: Path, model: str) -> str:
    from gto.versions import SemVer

    taken = (name.rpartition("@")[2].rstrip("!") for name in names(root, f"{model}@v*"))
    last = max((SemVer(number) for number in taken if SemVer.is_valid(number)), default=None)
    return str(last.bump(bump_minor=True).version) if last else "v1.0.0"


def _check_same(version: Version, release: Release) -> None:
    if version.release != release.version:
        raise RegistryError(
            f"The commit {version.commit[:10]} is {version.tag} already, with the release {version.release}, and not "
            f"with {release.version}. One commit makes one release: commit what made the other one."
        )


def _check_stands(now: Version | None, compared: str | None, version: Version) -> None:
    if (now.tag if now else None) != compared:
        raise RegistryError(
            f"{version.tag} was compared with {compared or 'no champion'}, and {now.tag if now else 'none'} is the "
            "champion by now: somebody has decided meanwhile, and nothing was promoted. "
            f"`mill retrain {version.model}` compares with it."
        )


def _held(home: Path, model: str, commit: str, release: str) -> Release:
    """The files of a commit's release in the store, from DVC's cache or remote. Within `changing`."""
    path = Paths(model).release.as_posix()
    source = f"{path} of the commit {commit[:10]}"
    return hold(model, release, home, lambda folder: bring(home, commit, path, folder), source)


def _follow(home: Path, model: str) -> bool:
    """Make live.json say what the tags say; whether it had to be changed. Within `changing`."""
    now = champion(home, model)
    if now is None:
        return False
    before = read_live(home).get(model)
    release = _held(home, model, now.commit, now.release)
    forced = {} if release.accepted else {"forced": True}
    set_live(model, release, home, tag=now.tag, number=now.number, **forced)
    return read_live(home).get(model) != before
