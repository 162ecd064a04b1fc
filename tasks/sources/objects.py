"""Objects behind a URL, read with fsspec: s3://, gs://, http:// and https://.

The URL is one object, a prefix that ends in "/", or a glob. Credentials come from the environment, in the way of each
store's own library, or as `$NAME` in the URL. An object's name is its path below the URL's fixed part, so that no name
holds a credential, and a bucket may move.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import polars as pl

from tasks.errors import MillError, SourceError
from tasks.params import CollectObjects
from tasks.shards import require_space, sha256_of
from tasks.sources import Partition, Source
from tasks.sources._credentials import SecretUrl, from_environment
from tasks.sources._formats import changed, gone, one_format, read_media, read_table
from tasks.sources._listing import Proof, files_of, partitions_of

# Which extra of this project brings the library for a scheme.
_EXTRAS = {"s3": "s3", "gs": "gs", "http": "http", "https": "http"}

# What proves that an object is the same, the best first: its pin's key, and how stores call it.
_PROOFS = (("md5", "md5Hash"), ("etag", "ETag"), ("etag", "etag"), ("last_modified", "Last-Modified"))


class Objects:
    """A partition for each object of rows; the pin is its size and its ETag, or the best that the store has instead."""

    def partitions(self, options: CollectObjects, known: Sequence[Partition]) -> list[Partition]:
        place = _place(options.url)
        with _explained(place.url), tempfile.TemporaryDirectory(prefix="mill-") as folder:
            proofs = _found(place, Path(folder))
        if not proofs and not known:
            raise SourceError(
                f"{place.url.shown}: no such object. collect.url is an object, a prefix that ends in '/', or a glob."
            )
        return partitions_of(proofs, known, options.format)

    def read(self, options: CollectObjects, partition: Partition, rows_per_batch: int) -> Iterator[pl.DataFrame]:
        place = _place(options.url)
        files = files_of(partition)
        with tempfile.TemporaryDirectory(prefix="mill-") as folder:
            fetched = ((name, _fetched(place, name, proof, Path(folder))) for name, proof in files.items())
            if "files" in partition.pin:
                contents = ((name, path.read_bytes()) for name, path in fetched)
                yield from read_media(contents, one_format(files, options.format), rows_per_batch)
            else:
                for name, path in fetched:
                    yield from read_table(path, place.shown(name), options.format, rows_per_batch)


@dataclass(frozen=True)
class _Place:
    """A store, and what of it the URL means."""

    store: Any  # an fsspec file system
    url: SecretUrl
    is_many: bool

    @property
    def base(self) -> str:
        return _fixed_part(self.url.url)

    def address(self, name: str) -> str:
        """Where to read the object of this name."""
        if not self.is_many:
            return self.url.url
        parts = urlsplit(self.url.url)
        if parts.scheme not in ("http", "https"):
            return self.base + name
        return urlunsplit((*urlsplit(self.base + name)[:3], parts.query, ""))

    def shown(self, name: str) -> str:
        """The object for people: with `$NAME` where the environment has the rest."""
        return _fixed_part(self.url.shown) + name


def _place(template: str) -> _Place:
    url = from_environment(template)
    scheme = url.url.partition("://")[0].lower()
    if scheme not in _EXTRAS:
        raise SourceError(
            "params.yaml: collect.url has another scheme; objects are read from s3://, gs://, http:// and https://. "
            "For files on this machine write source: files."
        )
    import fsspec

    try:
        # Not one that was made before: it would list what it saw then.
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError:
        raise SourceError(f"Please install modelmill[{_EXTRAS[scheme]}] to read {scheme}:// addresses.") from None
    path = urlsplit(url.url).path if scheme.startswith("http") else url.url
    return _Place(store, url, "*" in path or path.endswith("/"))


def _fixed_part(url: str) -> str:
    """The URL up to the last folder that no `*` stands in, with a slash at the end."""
    fixed = url.partition("?")[0].partition("*")[0]
    return fixed[: fixed.rindex("/") + 1]


def _found(place: _Place, folder: Path) -> dict[str, Proof]:
    """The objects that are there now, by their names below the fixed part."""
    store, url = place.store, place.url.url
    if not place.is_many:
        # Of the template, so that not even an object's own name can carry a value of the environment.
        name = place.url.shown.partition("?")[0].rpartition("/")[2]
        try:
            return {name: _proof(place, name, store.info(url), folder)}
        except FileNotFoundError as error:
            if _is_missing(error):
                return {}
            raise error.__cause__ or error from None
    found = store.glob(url, detail=True) if "*" in url else store.find(url, detail=True)
    base = store._strip_protocol(place.base).rstrip("/") + "/"
    return {
        name: _proof(place, name, details, folder)
        for name, details in ((path.removeprefix(base), details) for path, details in sorted(found.items()))
        if details["type"] == "file" and name and not name.endswith("/")  # some tools mark a folder by an object
    }


def _is_missing(error: FileNotFoundError) -> bool:
    """Whether there is no object. Of the web, fsspec says so of a refusal and of a missing server as well."""
    cause = error.__cause__
    return not type(cause).__module__.startswith("aiohttp") or getattr(cause, "status", None) in (404, 410)


def _proof(place: _Place, name: str, details: Mapping[str, Any], folder: Path) -> Proof:
    """What is pinned of an object. One without any mark of its version is fetched, and its content is the proof."""
    if details.get("type") == "directory":
        raise SourceError(f"{place.url.shown} is a prefix, not an object; write it with '/' at its end.")
    if not any(details.get(called) for _, called in _PROOFS):  # a web server's listing says little
        details = place.store.info(place.address(name))
    for key, called in _PROOFS:
        if details.get(called) and details.get("size") is not None:
            return {key: str(details[called]).strip('"'), "size": details["size"]}
    path = folder / "object"
    place.store.get_file(place.address(name), str(path))
    return {"sha256": sha256_of(path), "size": path.stat().st_size}


def _fetched(place: _Place, name: str, proof: Proof, folder: Path) -> Path:
    """The object as a file, which the next one takes the place of. It is on disk, so that memory need not hold it."""
    require_space(folder, proof["size"])
    path = folder / "fetched"
    with _explained(place.url):
        try:
            place.store.get_file(place.address(name), str(path))
            # After the fetch: an object that is replaced meanwhile is noticed.
            found = (
                {"sha256": sha256_of(path), "size": path.stat().st_size}
                if "sha256" in proof
                else _proof(place, name, {}, folder)
            )
        except FileNotFoundError as error:
            if _is_missing(error):
                raise SourceError(gone(place.shown(name))) from None
            raise error.__cause__ or error from None
        if found != proof:
            raise SourceError(changed(place.shown(name)))
        if path.stat().st_size != proof["size"]:
            raise SourceError(
                f"{place.shown(name)}: {path.stat().st_size:,} of {proof['size']:,} bytes came. Run it again."
            )
    return path


@contextlib.contextmanager
def _explained(url: SecretUrl) -> Iterator[None]:
    """Turn whatever a store's library raises into a sentence without credentials."""
    try:
        yield
    except MillError:
        raise
    except Exception as error:  # each library has errors of its own, which share no base
        raise SourceError(
            f"{url.shown} cannot be read ({type(error).__name__}: {url.scrubbed(error)}). Look at the address, the "
            "network, and the credentials in the environment."
        ) from None


SOURCE: Source[CollectObjects] = Objects()
