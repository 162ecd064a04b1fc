"""A release is used only where it is whole and accepted, and the message names what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ReleaseError
from tasks.release import open_release, read_release, seal


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "inside").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(range(256)))
    (folder / "inside" / "words.txt").write_text("höher", encoding="utf-8")
    seal(folder, facts())
    return folder


def facts(**changed: Any) -> dict[str, Any]:
    return {"verdict": "accepted", "reasons": [], "metrics": {"accuracy": {"value": 0.1 + 0.2}}, **changed}


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_manifest_names_every_file_with_its_hash_and_size(release: Path) -> None:
    files = manifest_of(release)["files"]
    assert list(files) == ["inside/words.txt", "model.onnx"]
    assert files["inside/words.txt"]["bytes"] == 6
    assert files["model.onnx"]["sha256"] == "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"


def test_a_whole_and_accepted_release_opens(release: Path) -> None:
    opened = open_release(release)
    assert opened.version.startswith("sha-")
    assert len(opened.version) == 12
    assert sorted(opened.files) == ["inside/words.txt", "manifest.json", "model.onnx"]


def test_a_flipped_bit_is_refused_with_the_files_name(release: Path) -> None:
    model = release / "model.onnx"
    content = bytearray(model.read_bytes())
    content[100] ^= 1
    model.write_bytes(content)
    with pytest.raises(ReleaseError, match=r"model\.onnx is not the file .* `mill run`"):
        open_release(release)


def test_a_missing_file_is_refused_with_its_name(release: Path) -> None:
    (release / "inside" / "words.txt").unlink()
    with pytest.raises(ReleaseError, match=r"words\.txt is missing"):
        open_release(release)


def test_a_file_that_the_manifest_does_not_name_is_refused(release: Path) -> None:
    (release / "model.onnx.data").write_bytes(b"weights from elsewhere")
    with pytest.raises(ReleaseError, match=r"model\.onnx\.data does not belong to the release"):
        open_release(release)


def test_a_folder_without_a_manifest_is_refused(release: Path) -> None:
    (release / "manifest.json").unlink()
    with pytest.raises(ReleaseError, match=r"has no manifest\.json"):
        open_release(release)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"nowhere is not here\. `mill run`"):
        open_release(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 1, "verdict": "accepted", "reasons": []}', "null"]
)
def test_a_damaged_manifest_is_refused(release: Path, content: str) -> None:
    (release / "manifest.json").write_text(content)
    with pytest.raises(ReleaseError, match=r"manifest\.json is damaged"):
        open_release(release)


def test_a_refused_release_opens_for_nobody_but_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    seal(tmp_path, facts(verdict="refused", reasons=["accuracy is 0.7: 0.08 below its floor of 0.78."]))
    with pytest.raises(ReleaseError, match=r"refused: accuracy is 0\.7: 0\.08 below"):
        open_release(tmp_path)
    assert not read_release(tmp_path).accepted


def test_a_verdict_that_was_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    seal(tmp_path, facts(verdict="refused", reasons=["too bad."]))
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"refused"', '"accepted"'))
    with pytest.raises(ReleaseError, match="was changed after the release was made"):
        open_release(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "inside/../../secret"])
def test_a_manifest_cannot_name_files_outside_of_the_release(release: Path, name: str) -> None:
    (release.parent / "secret").write_text("")
    facts_with = {**facts(), "files": {}}
    manifest = seal(release, facts_with)
    from tasks import release as module

    manifest["files"][name] = {"sha256": "", "bytes": 0}
    del manifest["version"]
    manifest["version"] = module._version_of(manifest)
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match="outside of the release"):
        open_release(release)


def test_the_version_is_a_function_of_files_and_facts_alone(tmp_path: Path) -> None:
    versions = []
    for number, (content, reasons) in enumerate([(b"a", []), (b"a", []), (b"b", []), (b"a", ["a reason."])]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content)
        os.utime(folder / "model.onnx", (number, number))
        versions.append(seal(folder, facts(reasons=reasons))["version"])
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
