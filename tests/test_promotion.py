"""`mill promote` and `mill rollback`: by a person, with a reason, and against the gate by force alone."""

import shutil
from pathlib import Path

import pytest

from flows import promotion
from flows.git import LIVE, GitError, git, holds, tip
from flows.landing import put_on_live
from flows.merge import MergeConflict
from flows.promotion import promote_by_name, rollback
from flows.registry import RegistryError, champion, promote, versions
from flows.store import current, live_file, put_in_use, read_live, usable
from flows.tags import create, find, promotions
from flows.versions import REGISTERED, rows_of
from tasks.shards import write_text

# DVC's own use of a library that it has not yet followed.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def state(root: Path) -> tuple[str, bytes | None]:
    live = live_file(root)
    return git(root, "for-each-ref"), live.read_bytes() if live.exists() else None


def test_a_release_that_a_person_was_asked_about_becomes_a_version_on_live_and_the_champion(history):
    promote(history.root, history.version(1), why="first")
    history.decide(2, "ask")
    said = promote_by_name(history.root, history.releases[1], why="I have read the examples")
    assert said == "films@v1.1.0 is the champion of films now instead of films@v1.0.0."
    assert champion(history.root, "films").commit == history.commits[1]
    assert tip(history.root, LIVE) == history.commits[1]
    assert current("films", history.root).version == history.releases[1]
    assert find(history.root, "films#champion#2")[0].facts["why"] == "I have read the examples"


@pytest.mark.parametrize(
    ("number", "verdict", "said"),
    [
        (2, "keep", "The gate kept it out: keep, says the gate."),
        (3, "keep", "Its floors refused it: accuracy is below"),
    ],
)
def test_what_was_kept_out_takes_force_and_both_are_recorded(history, number, verdict, said):
    promote(history.root, history.version(1), why="first")
    history.decide(number, verdict)
    before = state(history.root)
    with pytest.raises(RegistryError, match=said) as refused:
        promote_by_name(history.root, history.releases[number - 1], why="needed")
    assert f"mill promote {history.releases[number - 1]} --force --why" in str(refused.value)
    assert state(history.root) == before
    promote_by_name(history.root, history.releases[number - 1], why="needed", force=True)
    facts = find(history.root, "films#champion#2")[0].facts
    assert (facts["forced"], facts["why"]) == (True, "needed")
    assert said in facts["overrides"][0]
    assert usable("films", history.root)[0].version == history.releases[number - 1]


def test_a_release_of_main_that_no_gate_has_seen_is_promoted_only_where_there_is_no_champion(history):
    root = history.root
    git(root, "reset", "-q", "--hard", history.commits[0])
    promote_by_name(root, history.releases[0], why="the first")
    assert champion(root, "films").tag == "films@v1.0.0"
    git(root, "merge", "-q", "--ff-only", history.commits[1])
    said = r"has not compared it with films@v1\.0\.0, the present champion; `mill retrain films` would"
    with pytest.raises(RegistryError, match=said):
        promote_by_name(root, history.releases[1], why="better")
    assert tip(root, LIVE) == history.commits[0]


@pytest.mark.parametrize("verdict", ["ask", "promote"])
def test_a_judgement_beside_another_champion_is_none_beside_the_present_one(history, verdict):
    root, release = history.root, history.releases[1]
    history.decide(2, verdict)
    promote(root, history.version(1), why="first")
    before = state(root)
    with pytest.raises(RegistryError, match=r"not compared it with films@v1\.0\.0.*, but with no champion at all"):
        promote_by_name(root, release, why="better")
    assert state(root) == before
    history.decide(2, verdict)
    other = history.another(4)
    promote(root, other, why="meanwhile")
    before = state(root)
    with pytest.raises(RegistryError) as refused:
        promote_by_name(root, release, why="better")
    assert (
        f"has not compared it with {other.tag}, the present champion, but with films@v1.0.0; `mill retrain films` would"
    ) in str(refused.value)
    assert f"mill promote {release} --force --why" in str(refused.value)
    assert state(root) == before
    assert promote_by_name(root, release, why="better", force=True).startswith("films@v1.2.0 is the champion of films")
    assert "but with films@v1.0.0" in find(root, "films#champion#3")[0].facts["overrides"][0]


def test_a_new_judgement_beside_the_present_champion_lets_it_in(history):
    promote(history.root, history.version(1), why="first")
    history.decide(2, "ask")
    promote(history.root, history.another(4), why="meanwhile")
    history.decide(2, "ask")
    assert "is the champion of films now" in promote_by_name(history.root, history.releases[1], why="looked at")


def test_a_promotion_without_a_reason_or_of_what_is_not_there_changes_nothing(history):
    promote(history.root, history.version(1), why="first")
    before = state(history.root)
    for name, why, said in [
        ("films@v1.0.0", " ", "needs its reason"),
        ("films@v1.0.1", "w", "Did you mean 'films@v1.0.0'"),
        ("flims@v1.0.0", "w", "flims has no version yet. Did you mean 'films'"),
        ("flims", "w", "flims has no champion. Did you mean 'films'"),
        ("sha-00000000", "w", "No version, decision or branch has the release sha-00000000"),
    ]:
        with pytest.raises(RegistryError) as error:
            promote_by_name(history.root, name, why=why)
        assert said in str(error.value)
    assert state(history.root) == before


def test_promoting_the_champion_again_mends_its_files(history):
    promote(history.root, history.version(1), why="first")
    folder = current("films", history.root).folder
    write_text(folder / "tokenizer.json", "damaged")
    refs = git(history.root, "for-each-ref")
    assert "is the champion of films already" in promote_by_name(history.root, "films", why="mend")
    assert current("films", history.root).version == history.releases[0]
    assert git(history.root, "for-each-ref") == refs


def test_a_rollback_goes_back_one_champion_at_a_time_and_never_forward(history):
    for number in (1, 2, 3):
        promote(history.root, history.version(number), why="", force=True)
    said = rollback(history.root, "films", None, why="complaints")
    assert said == "films@v1.1.0 is the champion of films now instead of films@v1.2.0."
    assert current("films", history.root).version == history.releases[1]
    assert find(history.root, "films#champion#4")[0].facts["why"] == "complaints"
    rollback(history.root, "films", None, why="")
    assert champion(history.root, "films").tag == "films@v1.0.0"
    with pytest.raises(RegistryError, match=r"films@v1\.0\.0 is the first champion .* films@v1\.1\.0, films@v1\.2\.0"):
        rollback(history.root, "films", None, why="")
    rollback(history.root, "films", "v1.2.0", why="it was the data")
    assert read_live(history.root)["films"]["tag"] == "films@v1.2.0"


def test_a_rollback_to_what_was_never_the_champion_is_none(history):
    with pytest.raises(RegistryError, match="films has no champion to roll back"):
        rollback(history.root, "films", None, why="")
    promote(history.root, history.version(1), why="")
    history.version(2)
    before = state(history.root)
    with pytest.raises(RegistryError, match=r"never the champion.*mill promote films@v1\.1\.0"):
        rollback(history.root, "films", "films@v1.1.0", why="")
    with pytest.raises(RegistryError, match="is the champion of films already"):
        rollback(history.root, "films", "films@v1.0.0", why="")
    assert state(history.root) == before


def test_a_stage_of_the_peoples_own_is_no_promotion(history):
    root = history.root
    promote(root, history.version(1), why="")
    history.decide(2, "keep")
    second = history.version(2)
    create(root, "films#staging#2", second.commit, "tried", {})
    with pytest.raises(RegistryError, match="The gate kept it out"):
        promote_by_name(root, second.tag, why="it was tried")
    with pytest.raises(RegistryError, match="never the champion"):
        rollback(root, "films", second.tag, why="")
    assert next(row for row in rows_of(root, "films") if row.name == second.tag).stage == REGISTERED
    promote_by_name(root, second.tag, why="needed", force=True)
    assert [tag.name for tag in promotions(root, "films")] == ["films#champion#1", "films#champion#3"]


def test_a_champion_that_somebody_has_changed_in_the_last_moment_stays(history):
    root = history.root
    promote(root, history.version(1), why="")
    third = history.another(4)
    promote(root, third, why="by a person")
    with pytest.raises(RegistryError, match=f"compared with films@v1.0.0, and {third.tag} is the champion by now"):
        promote(root, history.version(2), why="by the gate", decision={"champion": "films@v1.0.0"})
    assert champion(root, "films").tag == third.tag
    promote(root, history.version(2), why="by the gate", decision={"champion": third.tag})
    assert champion(root, "films").commit == history.commits[1]


def test_a_branch_that_git_does_not_move_is_said_and_not_tried_for_ever(history):
    root = history.root
    history.decide(1, "ask")
    git(root, "branch", "live/x")
    with pytest.raises(GitError, match=r"Git does not move the branch `live`: .*live/x"):
        promote_by_name(root, history.releases[0], why="yes")
    assert versions(root, "films") == []


def test_in_a_clone_live_goes_on_from_origins(history, tmp_path):
    root = history.root
    git(root, "branch", LIVE, history.commits[1])
    git(tmp_path, "clone", "-q", str(root), "clone")
    clone = tmp_path / "clone"
    put_on_live(clone, "films", history.commits[0])
    assert tip(clone, f"refs/heads/{LIVE}") == history.commits[1]
    put_on_live(clone, "films", history.commits[2])
    assert tip(clone, f"refs/heads/{LIVE}") == history.commits[2]


def test_where_live_changed_otherwise_a_person_is_asked_and_nothing_is_promoted(history):
    root = history.root
    promote(root, history.version(1), why="")
    git(root, "branch", LIVE, history.commits[0])
    git(root, "worktree", "add", "-q", str(root.parent / "live"), LIVE)
    write_text(root.parent / "live" / "which", "7\n")
    git(root.parent / "live", "commit", "-qam", "live's own")
    git(root, "worktree", "remove", str(root.parent / "live"))
    history.decide(2, "ask")
    before = state(root)
    with pytest.raises(MergeConflict, match="have both changed which"):
        promote_by_name(root, history.releases[1], why="yes")
    assert state(root) == before
    assert [version.tag for version in versions(root, "films")] == ["films@v1.0.0"]


def test_killed_before_the_promotion_it_is_finished_when_asked_again(history, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    history.decide(2, "ask")
    for step in ("put_on_live", "register", "promote"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(promotion, step, killed)
            promote_by_name(history.root, history.releases[1], why="yes")
        assert champion(history.root, "films") is None
    promote_by_name(history.root, history.releases[1], why="yes")
    assert [version.tag for version in versions(history.root, "films")] == ["films@v1.0.0"]
    assert holds(history.root, LIVE, history.commits[1])


def test_a_workspace_release_does_not_take_the_champions_place(history):
    root = history.root
    git(root, "reset", "-q", "--hard", history.commits[1])
    shutil.rmtree(root / "models/films/release")
    shutil.copytree(history.packed / "2", root / "models/films/release")
    assert put_in_use("films", root).version == history.releases[1]
    assert "tag" not in read_live(root)["films"]
    promote(root, history.version(1), why="by the gate")
    assert put_in_use("films", root).version == history.releases[0]
    release, note = usable("films", root)
    assert release.version == history.releases[0]
    assert "In use is films@v1.0.0, until another version is promoted: `mill retrain films`" in note
    live_file(root).unlink()
    assert put_in_use("films", root) is None  # as in a fresh clone
    assert not live_file(root).exists()


def test_a_repository_in_which_nobody_can_commit_is_explained_and_left_as_it_was(history, monkeypatch, tmp_path):
    promote(history.root, history.version(1), why="")
    promote(history.root, history.version(2), why="")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EMAIL", "")
    for key in ("user.name", "user.email"):
        git(history.root, "config", "--unset", key)
    git(history.root, "config", "user.useConfigOnly", "true")
    before = state(history.root)
    for change in (
        lambda: promote_by_name(history.root, "films@v1.0.0", why="w"),
        lambda: rollback(history.root, "films", None, why="w"),
    ):
        with pytest.raises(GitError, match=r"git config user\.name"):
            change()
    assert state(history.root) == before


def test_a_detached_head_is_no_hindrance_and_a_shallow_clone_is_explained(history, tmp_path):
    promote(history.root, history.version(1), why="")
    promote(history.root, history.version(2), why="")
    git(history.root, "checkout", "-q", "--detach")
    rollback(history.root, "films", None, why="")
    assert champion(history.root, "films").tag == "films@v1.0.0"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{history.root}", "shallow")
    with pytest.raises(GitError, match="git fetch --unshallow --tags"):
        promote_by_name(tmp_path / "shallow", "films@v1.0.0", why="w")
