"""A journal of an earlier schema is brought up to date when it is opened, with all that it holds."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tasks.database import JournalError, open_to_read
from tasks.journal import Label, open_journal
from tests.conftest import REPOSITORY
from tests.postgres_server import PASSWORD, Server, started


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    yield from started()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal as the first schema had it, with two predictions and a label."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/journal.sqlite"
    else:
        server: Server = request.getfixturevalue("postgres")
        server.run("DROP SCHEMA public CASCADE")
        server.run("CREATE SCHEMA public")
        url = f"postgresql+psycopg://mill:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(REPOSITORY / "tasks/migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for number in (1, 2):
            connection.execute(
                sa.text(
                    "INSERT INTO predictions (id, at_us, model, version, client, is_shadow, inputs, answer, latency_ms)"
                    " VALUES (:id, 1, 'reviews', 'sha-1', NULL, :no, '{\"text\": \"a\"}', '{}', 1.5)"
                ),
                {"id": f"{number:032d}", "no": False},
            )
        connection.execute(
            sa.text('INSERT INTO feedback (prediction_id, at_us, label) VALUES (:id, 2, \'{"label": "good"}\')'),
            {"id": f"{2:032d}"},
        )
    engine.dispose()
    return url


def test_what_it_held_is_still_there_and_it_takes_more(url: str) -> None:
    journal = open_journal(url)
    window = journal.window("reviews")
    assert [int(found) for found in window["id"]] == [1, 2]
    assert window["label"].to_list() == [None, '{"label": "good"}']
    assert window["shadow_of"].to_list() == [None, None]
    assert journal.add_labels([Label(f"{1:032d}", {"label": "bad"})], model="reviews", client=None) == 1
    journal.close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        names = {index["name"] for index in sa.inspect(connection).get_indexes("predictions")}
        assert {"predictions_by_model", "predictions_by_time", "predictions_by_shadow"} <= names
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(sa.text(f"INSERT INTO predictions SELECT * FROM predictions WHERE id = '{1:032d}'"))
    engine.dispose()


def test_who_only_reads_changes_nothing_and_says_what_to_do(url: str) -> None:
    with pytest.raises(JournalError, match=r"earlier schema \(0001; this modelmill has .*mill serve"):
        open_to_read(url)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "0001"
    engine.dispose()
