"""A file inside a package that is installed for the test."""

import sys
from pathlib import Path

import polars as pl
import pytest

from tasks.errors import SourceError
from tasks.params import CollectPackage
from tasks.sources.package import SOURCE


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with one of data, which must not be imported."""
    (tmp_path / "millwords/data").mkdir(parents=True)
    (tmp_path / "millwords/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "millwords/data/words.csv").write_text("text,label\none,x\ntwo,y\n")
    (tmp_path / "single.py").write_text("")
    distribution = tmp_path / "mill_words-1.2.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: mill-words\nVersion: 1.2\n")
    (distribution / "top_level.txt").write_text("millwords\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def options(package: str = "millwords", file: str = "data/words.csv") -> CollectPackage:
    return CollectPackage(
        columns={"text": "text"}, where=None, rows_per_shard=10, package=package, file=file, format="auto"
    )


def test_a_file_is_found_without_importing_its_package(site: Path) -> None:
    (partition,) = SOURCE.partitions(options(), [])
    assert (partition.name, partition.pin["version"]) == ("millwords/data/words.csv", "mill-words 1.2")
    assert pl.concat(SOURCE.read(options(), partition, 1))["text"].to_list() == ["one", "two"]
    assert SOURCE.partitions(options("millwords.data", "words.csv"), [])[0].pin == partition.pin
    assert "millwords" not in sys.modules


def test_another_version_with_the_same_file_is_the_same_data_and_with_another_is_not(site: Path) -> None:
    known = SOURCE.partitions(options(), [])
    metadata = site / "mill_words-1.2.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
    assert SOURCE.partitions(options(), known) == known
    (site / "millwords/data/words.csv").write_text("text,label\nthree,x\n")
    message = r"is not the file that was pinned: that came from mill-words 1\.2, and mill-words 1\.3 is installed"
    with pytest.raises(SourceError, match=message):
        SOURCE.partitions(options(), known)
    with pytest.raises(SourceError, match=message):
        list(SOURCE.read(options(), known[0], 10))


@pytest.mark.parametrize(
    ("package", "file", "message"),
    [
        ("millwrods", "data/words.csv", "'millwrods', and no such package is installed"),
        ("single", "words.csv", "'single', and no such package is installed"),
        (".", "words.csv", "no such package is installed"),
        (
            "millwords",
            "data/absent.csv",
            "collect.file is 'data/absent.csv', and the package millwords has no such file",
        ),
        ("millwords.data", "../__init__.py", "has no such file"),
    ],
)
def test_what_is_not_there_is_named(site: Path, package: str, file: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        SOURCE.partitions(options(package, file), [])
