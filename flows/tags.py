"""Annotated tags of Git that carry facts: a sentence for people, and below it JSON for programs.

They are named as GTO names them: films@v1.1.0 is a version, films#champion#7 a promotion. A tag is written once,
atomically, or not at all; nothing here moves one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.git import GitError, attempt, git

CHAMPION = "champion"

_FIELDS = ("refname:strip=2", "*objecttype", "*objectname", "taggerdate:unix", "contents:subject", "contents:body")


@dataclass(frozen=True)
class Tag:
    """An annotated tag on a commit. `facts` is empty where somebody else has made it."""

    name: str
    commit: str
    when: datetime
    sentence: str
    facts: Mapping[str, Any]


def find(root: Path, *patterns: str) -> list[Tag]:
    """The annotated tags on commits whose names fit one of the patterns, which `*` stands in as in Git."""
    if attempt(root, "rev-parse", "--git-dir").returncode:
        return []  # no repository, no tags: whoever needs one says so
    form = "%00".join(f"%({field})" for field in _FIELDS) + "%00"
    said = git(root, "for-each-ref", f"--format={form}", *(f"refs/tags/{pattern}" for pattern in patterns))
    values = said.split("\0")[:-1]
    records = zip(*(iter(values),) * len(_FIELDS), strict=True)
    return [
        Tag(name.lstrip("\n"), commit, datetime.fromtimestamp(int(when or 0), UTC), sentence, _facts_in(body))
        for name, kind, commit, when, sentence, body in records
        if kind == "commit"
    ]


def names(root: Path, pattern: str) -> list[str]:
    """Every tag whose name fits, of whatever kind: none of these can be given again."""
    return git(root, "for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{pattern}").splitlines()


def create(
    root: Path, name: str, commit: str, sentence: str, facts: Mapping[str, Any], *, after: datetime | None = None
) -> bool:
    """Write an annotated tag; False where there is one of this name already, whoever made it.

    It is dated now, but always later than `after`: GTO knows the order of promotions by the second alone.
    """
    seconds = int(datetime.now(UTC).timestamp())
    if after is not None:
        seconds = max(seconds, int(after.timestamp()) + 1)
    tagger = git(root, "var", "GIT_COMMITTER_IDENT", env={"GIT_COMMITTER_DATE": f"{seconds} +0000"})
    told = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    content = f"object {commit}\ntype commit\ntag {name}\ntagger {tagger}\n\n{' '.join(sentence.split())}\n\n{told}\n"
    tag = git(root, "mktag", stdin=content)
    done = attempt(root, "update-ref", "--stdin", stdin=f"create refs/tags/{name} {tag}\n")
    if not done.returncode:
        return True
    if attempt(root, "show-ref", "--verify", "--quiet", f"refs/tags/{name}").returncode:
        raise GitError(f"Git does not take the tag {name}: {done.stderr.strip().removeprefix('fatal: ')}")
    return False


def count_of(name: str, mark: str) -> int:
    """The number behind the last `mark` of a tag's name; 0 where none stands there."""
    last = name.rpartition(mark)[2]
    return int(last) if last.isdecimal() else 0


def assignments(root: Path, model: str) -> list[Tag]:
    """All that was ever assigned to a stage of the model, or taken from one, in order: GTO counts over all stages."""
    found = [tag for tag in find(root, f"{model}#*") if count_of(tag.name, "#")]
    return sorted(found, key=lambda tag: count_of(tag.name, "#"))


def promotions(root: Path, model: str) -> list[Tag]:
    """Of these what made a commit the champion: other stages are people's own, and say nothing of what is in use."""
    return [tag for tag in assignments(root, model) if tag.name.split("#")[1] == CHAMPION]


def in_other_stages(root: Path, model: str) -> set[str]:
    """The commits that stand in a stage besides the champion's, as people and GTO assign them."""
    stands: dict[str, set[str]] = {}
    for tag in assignments(root, model):
        stage = tag.name.split("#")[1]
        if stage.endswith("!"):
            stands.get(stage.removesuffix("!"), set()).discard(tag.commit)
        else:
            stands[stage] = {tag.commit}
    stands.pop(CHAMPION, None)
    return set().union(*stands.values())


def standing(root: Path, model: str) -> list[Tag]:
    """The promotions that rollbacks go back through, the one in force last; empty where there is no champion.

    A rollback takes what came after its version away, so that the next one does not bring that back.
    """
    stands: list[Tag] = []
    for tag in assignments(root, model):
        stage = tag.name.split("#")[1]
        if stage not in (CHAMPION, f"{CHAMPION}!"):
            continue
        commits = [earlier.commit for earlier in stands]
        if stage.endswith("!"):
            stands = [earlier for earlier in stands if earlier.commit != tag.commit]
        elif tag.commit in commits and (tag.facts.get("rollback") or tag.commit == commits[-1]):
            stands = [*stands[: commits.index(tag.commit)], tag]
        else:
            stands.append(tag)
    return stands


def _facts_in(body: str) -> Mapping[str, Any]:
    lines = body.splitlines()
    if "{" not in lines:
        return {}
    try:
        found = json.loads("\n".join(lines[lines.index("{") :]))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
