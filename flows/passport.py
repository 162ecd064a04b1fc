"""The way from a prediction back to its source, link by link, each checked against the one before it.

The version's files against its manifest, the manifest against DVC's lock in the commit, the parameters against
params.yaml there, the data's manifests against their hashes in the release.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.git import LIVE, attempt, git, holds, main_branch, tip
from flows.lineage import OfCommit, outputs_at
from flows.marks import marks
from flows.objects import Objects
from flows.registry import champion, decisions, versions
from flows.store import version_folder
from flows.tags import promotions
from tasks.errors import MillError, ReleaseError
from tasks.params import read_yaml
from tasks.paths import Paths
from tasks.release import read_release
from tasks.shards import MANIFEST, write_parquet

if TYPE_CHECKING:
    import polars as pl

_MAX_LISTED = 12


class TraceError(MillError):
    """There is no such prediction or row, or nothing to look for it in."""


@dataclass
class Link:
    """One step of the way: what it is, for people and as facts, and what is wrong with it."""

    name: str
    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def check(self, holds: bool, agrees: str, differs: str) -> None:
        """Say that this step is what the step before names, or that it is not."""
        (self.lines if holds else self.broken).append(agrees if holds else differs)


class Way:
    """From one prediction back."""

    def __init__(self, home: Path, objects: Objects, prediction: Mapping[str, Any]) -> None:
        self.home = home
        self.objects = objects
        self.prediction = prediction
        self.model = str(prediction["model"])
        self.release = str(prediction["version"])
        found = [version for version in versions(home, self.model) if version.release == self.release]
        self.version = found[0] if found else None
        self.commit = found[0].commit if found else commit_of_release(home, self.model, self.release)
        self.outputs = outputs_at(home, self.commit, self.model) if self.commit else {}
        self.manifest: Mapping[str, Any] = {}

    def links(self) -> list[Link]:
        """Every step, in its order."""
        steps = [self._prediction(), self._version(), self._gate(), self._commit(), self._parameters()]
        return [*steps, *self._data(), self._source(), self._rows()]

    def _prediction(self) -> Link:
        found = self.prediction
        at = datetime.fromtimestamp(found["at_us"] / 1e6, UTC).isoformat(sep=" ", timespec="milliseconds")
        who = f" for {found['client']}" if found["client"] else ""
        link = Link("prediction", facts={name: value for name, value in found.items() if name != "seq"})
        link.lines = [
            f"{found['id']}, {at}{who}, in {found['latency_ms']:.1f} ms",
            f"asked: {shown(found['inputs'])}",
            f"answered: {shown(found['answer'])}",
        ]
        if found["label"] is not None:
            link.lines.append(f"the label that came later: {shown(found['label'])}")
        if found.get("shadow_of"):
            link.lines.append(f"In the shadow of {found['shadow_of']}: nobody was given this answer.")
        return link

    def _version(self) -> Link:
        version, folder = self.version, version_folder(self.home, self.model, self.release)
        link = Link("version", facts={"release": self.release, "tag": version.tag if version else None})
        now = champion(self.home, self.model)
        if version is not None:
            marks = [tag.name for tag in promotions(self.home, self.model) if tag.commit == version.commit]
            in_use = ", the champion" if now is not None and now.commit == version.commit else ""
            link.lines.append(f"{version.tag}, which is {self.release}{in_use}: {', '.join(marks) or 'not promoted'}")
            link.facts["promotions"] = marks
        else:
            link.lines.append(f"{self.release}, put in use by `mill run`: it has no tag")
        try:
            self.manifest = read_release(folder).manifest
            link.lines.append(f"{folder.relative_to(self.home)}: whole, as its manifest says")
        except ReleaseError:
            self._manifest_of_commit(link, folder)
        return link

    def _manifest_of_commit(self, link: Link, folder: Path) -> None:
        """What the commit has of a release that is no longer, or not whole, in the version store."""
        oid = self.outputs.get(Paths(self.model).release.as_posix())
        files = (self.objects.files(oid) if oid else None) or {}
        content = self.objects.read(files[MANIFEST]) if MANIFEST in files else None
        self.manifest = json.loads(content) if content else {}
        link.check(
            self.manifest.get("version") == self.release,
            "its manifest, from DVC's objects: it is not in the version store of this machine",
            f"{folder} is not whole, and neither DVC's cache nor its remotes have the manifest of {self.release}: what "
            "it was made of is told by the commit alone.",
        )

    def _gate(self) -> Link:
        link = Link("gate")
        found = [one for one in decisions(self.home, self.model) if one.get("challenger") == self.release]
        if not found:
            verdict = self.manifest.get("verdict", "unknown")
            link.lines.append(f"no gate was asked; its own floors say: {verdict}")
            return link
        decision = found[-1]
        link.facts = {name: value for name, value in decision.items() if name != "when"}
        link.lines.append(f"{decision['tag']}: {decision['verdict']}. {decision['sentence']}")
        spent = f", at {decision['alpha_spent']:g} of the error rate, on {decision['test_set']}"
        against = decision["champion"] or "no champion"
        link.lines.append(f"against {against}{spent if decision['alpha_spent'] else ''}")
        report = f"{decision['commit'][:10]}:{(Paths(self.model).reports / 'gate.json').as_posix()}"
        if not attempt(self.home, "cat-file", "-e", report).returncode:
            link.lines.append(f"report: git show {report}")
        return link

    def _commit(self) -> Link:
        link = Link("commit", facts={"commit": self.commit})
        if self.commit is None:
            link.broken.append(
                f"No commit's reports/{self.model}/deploy.json names {self.release}: it was never committed."
            )
            return link
        said = git(self.home, "log", "-1", "--format=%h%x00%cI%x00%an%x00%s", self.commit).split("\0")
        link.lines.append(f"{self.commit}, {said[1]}, {said[2]}: {said[3]}")
        branches = [name for name in (LIVE, main_branch(self.home)) if self._is_on(name)]
        link.lines.append(f"on {' and '.join(branches)}" if branches else "on a branch of its own")
        link.facts |= {"at": said[1], "by": said[2], "subject": said[3], "branches": branches}
        return link

    def _is_on(self, branch: str) -> bool:
        name = tip(self.home, f"refs/heads/{branch}")
        return name is not None and holds(self.home, name, str(self.commit))

    def _parameters(self) -> Link:
        parameters = self.manifest.get("parameters", {})
        link = Link("parameters", facts={"parameters": parameters})
        if not self.commit or not parameters:
            return link
        said = attempt(self.home, "cat-file", "blob", f"{self.commit}:params.yaml").stdout
        there = params_in(said).get(self.model)
        link.check(
            there == parameters,
            f"as params.yaml of {self.commit[:10]} has them: git show {self.commit[:10]}:params.yaml",
            f"params.yaml of {self.commit[:10]} and the manifest of {self.release} do not agree on them.",
        )
        train = parameters.get("train", {})
        told = {name: train[name] for name in ("seed", "epochs", "learning_rate", "batch_size") if name in train}
        link.lines.append(", ".join([f"base {shown(parameters.get('base'))}", *(f"{k} {v}" for k, v in told.items())]))
        packages = self.manifest.get("packages", {})
        link.facts["packages"] = packages
        link.lines.append(", ".join(f"{name} {number}" for name, number in packages.items()))
        return link

    def _data(self) -> Iterator[Link]:
        paths = Paths(self.model)
        for stage, folder in (("clean", paths.clean), ("collect", paths.collected)):
            told = self.manifest.get("data", {}).get(stage)
            if told is None:
                continue
            link = Link(stage, facts={"path": folder.as_posix(), "dvc": self.outputs.get(folder.as_posix()), **told})
            num_rows = sum(shard["rows"] for shard in told["shards"].values())
            link.lines.append(f"{folder.as_posix()}: {num_rows:,} rows, its manifest {told['manifest_sha256']}")
            link.lines += _listed(f"{name}  {one['rows']:>9,}  {one['sha256']}" for name, one in told["shards"].items())
            self._check_data(link, folder.as_posix(), told)
            yield link

    def _check_data(self, link: Link, path: str, told: Mapping[str, Any]) -> None:
        """See that the commit's data is what the release names, as far as its objects are to be had."""
        oid = self.outputs.get(path)
        files = self.objects.files(oid) if oid else None
        content = self.objects.read(files[MANIFEST]) if files and MANIFEST in files else None
        if content is None:
            where = " and ".join(["DVC's cache", *(place.name for place in self.objects.remotes)])
            why = self._why_gone() or f"{where} do not have it."
            link.broken.append(f"The data itself is not to be had here: {why}")
            return
        shards = {one["name"]: one["sha256"] for one in json.loads(content)["shards"]}
        link.check(
            sha256(content).hexdigest() == told["manifest_sha256"]
            and shards == {name: one["sha256"] for name, one in told["shards"].items()},
            f"the same as dvc.lock of {str(self.commit)[:10]} names: {oid}",
            f"dvc.lock of {str(self.commit)[:10]} names other data ({oid}) than the release was made from.",
        )
        gone = [name for name in shards if self.objects.opener((files or {})[name]) is None]
        if gone:
            link.broken.append(f"{len(gone)} of its shards are not to be had: {self._why_gone() or ', '.join(gone)}")

    def _why_gone(self) -> str:
        mark = marks(self.home, self.model).get(self.version.tag) if self.version else None
        return mark.sentence if mark else ""

    def _source(self) -> Link:
        """What collect was pinned to, from the manifest of what it wrote."""
        link = Link("source")
        oid = self.outputs.get(Paths(self.model).collected.as_posix())
        files = (self.objects.files(oid) if oid else None) or {}
        content = self.objects.read(files[MANIFEST]) if MANIFEST in files else None
        partitions = json.loads(content).get("partitions", []) if content else []
        parameters = self.manifest.get("parameters", {})
        pin = parameters.get("pin")
        link.facts = {"source": parameters.get("source"), "pin": pin, "partitions": partitions}
        if parameters:
            link.lines.append(f"{parameters['source']}: {_whereabouts(parameters['collect'])}")
        if self.commit and pin:
            in_git = git(self.home, "ls-tree", self.commit, "--", pin)
            blob = f"git {in_git.split()[2]}" if in_git else "not in Git"
            link.lines.append(f"pinned by {pin} of {self.commit[:10]} ({blob})")
        link.lines += _listed(f"{one['name']}  {one['read']:>9,}  {shown(one['pin'])}" for one in partitions)
        return link

    def _rows(self) -> Link:
        link = Link("rows")
        report = Paths(self.model).report("clean").as_posix()
        said = attempt(self.home, "cat-file", "blob", f"{self.commit}:{report}").stdout if self.commit else ""
        splits = json.loads(said).get("splits", {}) if said else {}
        counts = {split: found["rows"] for split, found in splits.items()}
        link.facts = {"splits": counts}
        if counts:
            told = ", ".join(f"{number:,} in {split}" for split, number in counts.items())
            link.lines.append(f"{told}. It learned from train, was chosen by validation, and test saw no learning.")
            link.lines.append("Every one of them: --rows FILE.parquet. Those next to the prediction: --nearest 5")
        return link

    def written(self, target: Path) -> Link:
        """The version's rows, written to a file. Raises TraceError where they are not to be had."""
        found = self.clean_rows()
        write_parquet(target, found)
        counts = found["split"].value_counts().sort("split")
        told = ", ".join(f"{number:,} {split}" for split, number in counts.iter_rows())
        return Link("written", [f"{target}: {len(found):,} rows ({told})"], {"file": str(target)})

    def nearest(self, number: int) -> Link:
        """The training rows next to the prediction in the version's own space."""
        from flows.nearest import nearest_rows

        folder = version_folder(self.home, self.model, self.release)
        found = nearest_rows(read_release(folder), self.prediction["inputs"], self.clean_rows(), number)
        link = Link("nearest", facts={"rows": found.rows, "of": found.num_compared, "in_train": found.num_rows})
        sampled = (
            "" if found.num_compared == found.num_rows else f", drawn by the hash of their ids from {found.num_rows:,}"
        )
        link.lines.append(
            f"of {found.num_compared:,} training rows{sampled}, by the cosine of the pooled embeddings. Near is not "
            "decisive: it says what the version takes for alike."
        )
        link.lines += [f"{row['cosine']:.3f}  {row['id']}  {shown(row['row'])}" for row in found.rows]
        return link

    def clean_rows(self) -> "pl.DataFrame":
        """The version's clean rows, whole. Raises TraceError where a shard is not to be had."""
        import polars as pl

        path = Paths(self.model).clean.as_posix()
        files = OfCommit(self.objects, self.outputs).files(path) or {}
        shards = {name: opener for name, opener in files.items() if name.startswith("rows-")}
        if not shards or None in shards.values():
            raise TraceError(f"The rows of {self.release} are not to be had here. {self._why_gone()}".rstrip())
        parts = []
        for _, opener in sorted(shards.items()):
            assert opener is not None  # noqa: S101
            with opener() as file:
                parts.append(pl.read_parquet(file.read()))
        return pl.concat(parts)


def commit_of_release(home: Path, model: str, release: str) -> str | None:
    """The first commit whose report says that it made a release; None where there is none."""
    report = Paths(model).report("deploy").as_posix()
    found = git(home, "log", "--all", "--reverse", "--format=%H", f"-S{release}", "--", report).split()
    for commit in found:
        said = attempt(home, "cat-file", "blob", f"{commit}:{report}").stdout
        if said and json.loads(said).get("version") == release:
            return commit
    return None


def params_in(text: str) -> Mapping[str, Any]:
    """The models of a params.yaml, as it is written there; empty where it cannot be read."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            return dict(read_yaml(file)["models"])
        except (MillError, KeyError, TypeError):
            return {}


def _listed(lines: Iterable[str]) -> list[str]:
    every = [f"  {line}" for line in lines]
    more = [f"  … and {len(every) - _MAX_LISTED} more"] if len(every) > _MAX_LISTED else []
    return every[:_MAX_LISTED] + more


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _whereabouts(collect: Mapping[str, Any]) -> str:
    places = (collect.get(name) for name in ("path", "url", "file", "query"))
    return ", ".join(str(place) for place in places if place)
