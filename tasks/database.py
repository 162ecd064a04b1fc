"""The journal's database: SQLite where nothing is said, any server that SQLAlchemy knows by URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tasks.errors import MillError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Any number, as long as every process that migrates takes the same.
_MIGRATION_LOCK = 7_146_455


class JournalError(MillError):
    """The journal cannot be opened, read or written."""


def open_engine(url: str) -> tuple["Engine", str]:
    """Connect and bring the schema up to date; the engine, and a name that holds no password. Raises JournalError."""
    try:
        address = sa.engine.make_url(url)
    except sa.exc.ArgumentError:
        raise JournalError("The journal's URL is no SQLAlchemy URL. sqlite:///journal.sqlite is one.") from None
    is_sqlite = address.get_backend_name() == "sqlite"
    name = str(address.database if is_sqlite else f"{address.database} on {address.host}")
    try:
        if is_sqlite and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(address, pool_pre_ping=not is_sqlite)
        if is_sqlite:
            sa.event.listen(engine, "connect", _set_up_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        try:
            with writing(engine, name) as connection:
                _migrate(connection, name)
        except BaseException:
            engine.dispose()
            raise
    except ModuleNotFoundError as error:
        raise JournalError(f"The journal needs the package {error.name}. Install modelmill[postgres].") from None
    except OSError as error:
        raise JournalError(f"The journal {name} cannot be opened: {error.strerror}.") from None
    return engine, name


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
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise JournalError(f"The journal {name} cannot be read: {_cause(error)}") from None


def _set_up_sqlite(connection: Any, _: Any) -> None:
    """WAL lets readers read while one writes; FULL syncs at each commit, so that a commit outlives a power cut.

    What is deleted is overwritten: it may be what somebody has a right to have forgotten.
    """
    connection.isolation_level = None  # sqlite3 begins no transaction by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: "Connection") -> None:
    # A transaction that reads first and writes later would fail where another wrote in between: take the lock at once.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(connection: "Connection", name: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    newest = str(ScriptDirectory.from_config(config).get_current_head())
    if connection.dialect.name == "postgresql":  # SQLite's transaction keeps other processes out already
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    present = MigrationContext.configure(connection).get_current_revision()
    if present == newest:
        return
    if present is not None and present > newest:
        raise JournalError(
            f"The journal {name} was written by a newer modelmill (schema {present}; this one knows {newest}). "
            "Update the code that opens it."
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _cause(error: Exception) -> str:
    """What the database itself said. SQLAlchemy's text quotes statements with their values, which may be personal."""
    lines = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__}."
