"""The journal's database: SQLite where nothing is said, any server that SQLAlchemy knows by URL."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tasks.errors import MillError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import URL, Connection, Engine

# Any number, as long as every process that migrates takes the same.
_MIGRATION_LOCK = 7_146_455
_LABELS_LOCK = 7_146_456

# A server that has gone, or that somebody has locked, must not be waited for without end. What the URL says stands.
_CONNECT = {
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
_BUSY_MS = 10_000  # how long SQLite waits for whoever writes
_STATEMENT_MS = 30_000  # of those that write; who reads a year of predictions may take longer

# Emptying SQLite's log waits for whoever reads the journal as it was before. Nobody can write meanwhile, so it waits
# briefly, lets others write, and tries again.
_EMPTYING_MS = 100
_WRITING_SECONDS = 0.3
_EMPTYING_SECONDS = 15


class JournalError(MillError):
    """The journal cannot be opened, read or written."""


class LogNotEmptied(JournalError):
    """What was deleted is gone from the journal, and still stands in SQLite's log."""


def open_engine(url: str) -> tuple["Engine", str]:
    """Connect and bring the schema up to date; the engine, and a name that holds no password. Raises JournalError."""
    address, name = _address(url)
    with _explained(name):
        if address.get_backend_name() == "sqlite" and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = _engine(address)
        try:
            with writing(engine, name) as connection:
                _migrate(connection, name)
        except BaseException:
            engine.dispose()
            raise
    return engine, name


def open_to_read(url: str) -> tuple["Engine", str]:
    """The same without writing anything. Raises JournalError where there is no journal, or one of another schema."""
    address, name = _address(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        raise JournalError(f"There is no journal at {name}. The server makes it: mill serve")
    with _explained(name):
        engine = _engine(address)
        try:
            with reading(engine, name) as connection:
                _check_schema(connection, name)
        except BaseException:
            engine.dispose()
            raise
    return engine, name


def _address(url: str) -> "tuple[URL, str]":
    try:
        address = sa.engine.make_url(url)
    except sa.exc.ArgumentError:
        raise JournalError("The journal's URL is no SQLAlchemy URL. sqlite:///journal.sqlite is one.") from None
    is_sqlite = address.get_backend_name() == "sqlite"
    return address, str(address.database if is_sqlite else f"{address.database} on {address.host}")


def _engine(address: "URL") -> "Engine":
    if address.get_backend_name() == "postgresql":
        by_libpq = address.get_driver_name() in ("psycopg", "psycopg2")
        limits = {name: value for name, value in _CONNECT.items() if name not in address.query} if by_libpq else {}
        engine = sa.create_engine(address, pool_pre_ping=True, connect_args=limits)
        sa.event.listen(engine, "connect", _set_up_postgresql)
        return engine
    if address.get_backend_name() != "sqlite":
        return sa.create_engine(address, pool_pre_ping=True)
    engine = sa.create_engine(address)
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise JournalError(f"The journal needs the package {error.name}. Install modelmill[postgres].") from None
    except OSError as error:
        raise JournalError(f"The journal {name} cannot be opened: {error.strerror}.") from None


@contextmanager
def writing(engine: "Engine", name: str) -> "Iterator[Connection]":
    """A transaction that is committed at its end."""
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise JournalError(f"The journal {name} cannot be used: {_cause(error)}") from None


@contextmanager
def reading(engine: "Engine", name: str) -> "Iterator[Connection]":
    """A transaction in which everything stands still, whoever writes meanwhile."""
    options = {"reads": True} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    try:
        with engine.connect().execution_options(**options) as connection:
            _take_your_time(connection)
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise JournalError(f"The journal {name} cannot be read: {_cause(error)}") from None


def in_turn(connection: "Connection") -> None:
    """Let those who write labels come one after the other, so that numbers become visible in their order.

    A reader that has seen a number has then seen all below it, as a watermark needs. SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LABELS_LOCK)))


def touch(connection: "Connection") -> None:
    """Write something that changes nothing."""
    connection.execute(sa.text("UPDATE alembic_version SET version_num = version_num"))


def empty_log(engine: "Engine", name: str) -> None:
    """Write over what was deleted in SQLite's log; other servers see to theirs. Raises LogNotEmptied."""
    if engine.dialect.name != "sqlite":
        return
    until = time.monotonic() + _EMPTYING_SECONDS
    while not _emptied(engine, name):
        if time.monotonic() > until:
            raise LogNotEmptied(
                f"What was deleted still stands in {name}-wal: somebody has been reading the journal for "
                f"{_EMPTYING_SECONDS} s, as a backup does. Once that has ended, the same again empties it."
            )
        time.sleep(_WRITING_SECONDS)


def _emptied(engine: "Engine", name: str) -> bool:
    connection = engine.raw_connection()  # a transaction would be in the way
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_EMPTYING_MS}")
        try:
            # Of being in somebody's way it says so in its row, and raises nothing.
            is_busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    except sqlite3.Error as error:
        raise LogNotEmptied(f"What was deleted still stands in {name}-wal: {error}.") from None
    finally:
        connection.close()
    return not is_busy


def _set_up_postgresql(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {_STATEMENT_MS}")
    cursor.close()
    connection.commit()  # rolled back, it would not have been said


def _take_your_time(connection: "Connection") -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """WAL lets readers read while one writes; FULL syncs at each commit, so that a commit outlives a power cut.

    What is deleted is overwritten: it may be what somebody has a right to have forgotten.
    """
    connection.isolation_level = None  # sqlite3 begins no transaction by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: "Connection") -> None:
    # A transaction that reads first and writes later would fail where another wrote in between: take the lock at once.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(connection: "Connection", name: str) -> None:
    from alembic import command

    config, newest = _schema()
    _take_your_time(connection)
    if connection.dialect.name == "postgresql":  # SQLite's transaction keeps other processes out already
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    present = _present(connection)
    if present == newest:
        return
    if present is not None and present > newest:
        raise JournalError(_too_new(name, present, newest))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_schema(connection: "Connection", name: str) -> None:
    present, newest = _present(connection), _schema()[1]
    if present is not None and present > newest:
        raise JournalError(_too_new(name, present, newest))
    if present != newest:
        raise JournalError(
            f"The journal {name} is of an earlier schema ({present or 'none'}; this modelmill has {newest}). The "
            "server brings it up to date when it starts: mill serve"
        )


def _present(connection: "Connection") -> str | None:
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


def _schema() -> "tuple[Config, str]":
    """What Alembic needs to know, and the newest revision that this code has."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config, str(ScriptDirectory.from_config(config).get_current_head())


def _too_new(name: str, present: str, newest: str) -> str:
    return (
        f"The journal {name} was written by a newer modelmill (schema {present}; this one knows {newest}). "
        "Update the code that opens it."
    )


def _cause(error: Exception) -> str:
    """What the database itself said. SQLAlchemy's text quotes statements with their values, which may be personal."""
    lines = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__}."
