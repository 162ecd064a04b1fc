"""What holds certain rows of a model: DVC's objects, files, and answers in the journal. Nothing here changes anything.

An erasure names objects by their hashes, files by their places and predictions by their ids, and holds nothing of the
rows themselves, so that it may be written down and gone on with.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.git import attempt, git
from flows.lineage import Wanted, holds, model_of_output, outputs_in
from flows.merge import LOCK
from flows.objects import Objects, Opener
from tasks import problems
from tasks.normalise import normalised
from tasks.params import Model
from tasks.paths import Paths
from tasks.redact import redact
from tasks.release import GOLDEN

if TYPE_CHECKING:
    from tasks.journal import Journal

# Where a model's rows stand whole: as collected, as validated, as cleaned.
_WHOLE = ("collected", "valid", "quarantine", "clean")

_HASH = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")

# A shorter value stands on pages that are not about the row.
_MIN_SPOKEN = 12

# Pages, and what stands beside them for programs.
_SHOWING = (".html", ".json", ".csv")

# A release's golden rows without their file's name, as an object of the cache.
_MAX_GOLDEN_BYTES = 20_000_000


@dataclass
class Erasure:
    """What has to go. `outputs` are the hashes of the line's outputs that held a row: what they were is then known."""

    objects: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)  # below the repository's root
    predictions: set[str] = field(default_factory=set)

    def add(self, other: "Erasure") -> None:
        for name in ("objects", "outputs", "files", "predictions"):
            getattr(self, name).update(getattr(other, name))

    def as_json(self) -> dict[str, list[str]]:
        return {name: sorted(getattr(self, name)) for name in ("objects", "outputs", "files", "predictions")}

    @classmethod
    def of_json(cls, value: Mapping[str, list[str]]) -> "Erasure":
        return cls(**{name: set(found) for name, found in value.items()})


@dataclass
class Holders:
    """Looks for the rows of one model, in the repository at `home`."""

    home: Path
    objects: Objects
    model: str
    wanted: Wanted
    params: Model
    _known: dict[str, bool] = field(default_factory=dict)  # whether an object holds a row

    def erasure(self, journal: "Journal | None") -> Erasure:
        """All that holds the rows now, but for collect's own output in the working tree, which is written again."""
        found = Erasure()
        outputs = self._outputs()
        for oid in {oid for oids in outputs.values() for oid in oids}:
            held = self._objects_in(oid)
            found.objects |= held
            if held:
                found.outputs.add(oid)
        found.objects |= self._unnamed()
        contents = self.contents(outputs)
        named = {id: one for id in self.wanted.ids if journal and (one := journal.find(id))}
        asked = [*self._asked(contents), *(one["inputs"] for one in named.values())]
        found.files = self._files([*contents, *asked])
        if journal is not None:
            found.predictions = {*journal.asked(asked), *named}
        return found

    def needed_by_others(self, erasure: Erasure, commits: Iterable[str]) -> dict[str, list[str]]:
        """The outputs of other models, in these commits or the working tree, that share objects with the erasure."""
        shared: dict[str, list[str]] = {}
        for lock in (
            *(attempt(self.home, "cat-file", "blob", f"{one}:{LOCK}").stdout for one in commits),
            self._lock(),
        ):
            for model, outputs in outputs_in(lock).items():
                for path, oid in outputs.items() if model != self.model else ():
                    if set(self._files_of(oid).values()) & erasure.objects and path not in shared.get(model, []):
                        shared.setdefault(model, []).append(path)
        return shared

    def _lock(self) -> str:
        """The working tree's."""
        file = self.home / LOCK
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def _outputs(self) -> dict[str, set[str]]:
        """The model's outputs by path, of every lock that Git knows, of the working tree, and of DVC's run cache."""
        found: dict[str, set[str]] = {}
        for text in (*_blobs(self.home, LOCK), self._lock()):
            for path, oid in outputs_in(text).get(self.model, {}).items():
                found.setdefault(path, set()).add(oid)
        for file in _below(self.objects.runs):
            for path, oid in _outs_of_run(file):
                if model_of_output(path) == self.model:
                    found.setdefault(path, set()).add(oid)
        return found

    def _files_of(self, oid: str) -> Mapping[str, str]:
        return (self.objects.files(oid) or {}) if oid.endswith(".dir") else {"": oid}

    def _objects_in(self, oid: str) -> set[str]:
        """The objects of an output that hold a row."""
        return {one for name, one in self._files_of(oid).items() if self._holds(one, name)}

    def _holds(self, oid: str, name: str) -> bool:
        if oid not in self._known:
            opener = self.objects.opener(oid)
            self._known[oid] = opener is not None and self._reads(opener, name)
        return self._known[oid]

    def _reads(self, opener: Opener, name: str) -> bool:
        with opener() as file:
            return holds(file, name, self.wanted)

    def _unnamed(self) -> set[str]:
        """Objects of the cache with such rows that no lock and no .dvc file names: of runs that nobody committed."""
        named = {oid for text in (*_blobs(self.home, LOCK, "*.dvc"), self._lock()) for oid in _HASH.findall(text)}
        listed = {one for oid in named for one in self._files_of(oid).values()}
        found = set()
        for oid in self.objects.cache.all():
            if oid in named or oid in listed or oid in self._known or oid.endswith(".dir"):
                continue
            opener = self.objects.opener(oid)
            if opener is not None and self._holds(oid, _guessed_name(opener)):
                found.add(oid)
        return found

    def contents(self, outputs: Mapping[str, set[str]] | None = None) -> list[dict[str, Any]]:
        """The rows' values, every form of them: what the journal and pages are searched for."""
        paths, outputs = Paths(self.model), self._outputs() if outputs is None else outputs
        folders = [getattr(paths, name).as_posix() for name in _WHOLE]
        held = {one for path in folders for oid in outputs.get(path, ()) for one in self._objects_in(oid)}
        openers = [opener for one in sorted(held) if (opener := self.objects.opener(one)) is not None]
        openers += [_opener(file) for path in folders for file in _below(self.home / path) if self._is_of_rows(file)]
        rows = (row for opener in openers for row in self._rows(opener))
        return list({json.dumps(row, default=str): row for row in rows}.values())

    def _asked(self, contents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows as the server would have written them down, had it been asked about one."""
        problem, tidy = problems.load(self.params.problem), self.params.clean
        schema = {name: problem.columns[name] for name in problem.inputs}
        rows = pl.DataFrame([{name: row.get(name) for name in schema} for row in contents], schema=schema)
        texts = [name for name in problem.texts if name in schema]
        tidied = redact(normalised(rows, texts, tidy), texts, tidy.redact, tidy.phone_regions)[0]
        return [*rows.to_dicts(), *tidied.to_dicts()]

    def _rows(self, opener: Opener) -> list[dict[str, Any]]:
        with opener() as file:
            rows = pl.read_parquet(file.read())
        return rows.filter(self.wanted.among(rows["id"])).to_dicts()

    def _files(self, contents: Iterable[Mapping[str, Any]]) -> set[str]:
        """Files of the checkout that hold a row, and pages on which one stands."""
        paths, found = Paths(self.model, self.home), set()
        own = {self.model, f"{self.model}-release"}
        for folder in (self.home / ".mill", self.home / ".dvc" / "tmp", self.home / "models" / self.model):
            # Within .mill every model has folders of its name. Worktrees in use are another model's.
            places = (file for file in _below(folder) if own & set(file.parts) and "worktrees" not in file.parts)
            found |= {file for file in places if self._is_of_rows(file)}
        for folder in (paths.valid, paths.quarantine, paths.clean, paths.tokens, paths.scores):
            if any(self._is_of_rows(file) for file in _below(folder)):
                found |= set(_below(folder))
        texts = {text for row in contents for text in _spoken(row)}
        kept = self.home / ".mill"
        pages = [file for file in _below(paths.reports) if file.suffix == ".html"]  # what else is there is Git's
        for folder in (kept / "retrain" / "reports" / self.model, kept / "monitor" / self.model, kept / "evidently"):
            pages += [file for file in _below(folder) if file.suffix in _SHOWING]
        found |= {page for page in pages if _shows(page, texts)}
        return {file.relative_to(self.home).as_posix() for file in found}

    def _is_of_rows(self, file: Path) -> bool:
        if file.suffix not in (".parquet", ".arrow") and file.name != GOLDEN:
            return False
        try:
            return self._reads(_opener(file), file.name)
        except (OSError, ValueError, pl.exceptions.PolarsError):
            return False  # half written: no reader would take it either


def _blobs(home: Path, *patterns: str) -> list[str]:
    """Every content that files of these names ever had, in any commit that Git still has."""
    said = git(
        home, "rev-list", "--all", "--reflog", "--full-history", "--objects", "--no-object-names", "--", *patterns
    )
    kinds = git(home, "cat-file", "--batch-check", stdin=said).splitlines()
    blobs = [line.split()[0] for line in kinds if line.split()[1] == "blob"]
    return [attempt(home, "cat-file", "blob", blob).stdout for blob in blobs]


def _outs_of_run(file: Path) -> Iterator[tuple[str, str]]:
    from dvc.utils.serialize import loads_yaml

    found = loads_yaml(file.read_text(encoding="utf-8")) or {}
    yield from ((out["path"], out["md5"]) for out in found.get("outs", []) if "md5" in out)


def _opener(file: Path) -> Opener:
    return lambda: file.open("rb")


def _guessed_name(opener: Opener) -> str:
    """The name under which an object without one is read."""
    with opener() as file:
        start = file.read(64)
        if not start.startswith(b"{"):
            return ""
        return GOLDEN if b'"tolerance"' in start + file.read(_MAX_GOLDEN_BYTES) else ""


def _below(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]


def _spoken(row: Mapping[str, Any]) -> Iterator[str]:
    """What of a row a page could show: its values that are long enough to be it."""
    for name, value in row.items():
        if isinstance(value, str) and name not in ("split", "reason") and len(value) >= _MIN_SPOKEN:
            yield value


def _shows(page: Path, texts: Iterable[str]) -> bool:
    """Whether a page has one of the texts, as HTML, JSON or CSV write it."""
    content = page.read_text(encoding="utf-8", errors="replace")
    if page.suffix == ".html":
        content = html.unescape(content)
    forms = (form for text in texts for form in (text, json.dumps(text)[1:-1], text.replace('"', '""')))
    return any(form in content for form in forms)
