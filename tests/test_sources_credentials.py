"""Secrets stand in the environment, and nowhere else."""

import pytest

from tasks.errors import SourceError
from tasks.sources._credentials import from_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_USER", "ann")
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w?rd 100%")
    monkeypatch.setenv("DB_HOST", "db.example:5432")
    monkeypatch.setenv("WHOLE_URL", "postgresql://ann:hidden%20word@db.example/data")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret")


def test_values_are_quoted_where_a_url_needs_it() -> None:
    url = from_environment("postgresql://$DB_USER:${DB_PASSWORD}@$DB_HOST/data?sslpassword=$DB_PASSWORD")
    assert url.url == (
        "postgresql://ann:p%40ss%2Fw%3Frd%20100%25@db.example:5432/data?sslpassword=p%40ss%2Fw%3Frd+100%25"
    )


def test_a_whole_url_may_stand_in_the_environment() -> None:
    url = from_environment("$WHOLE_URL")
    assert url.url == "postgresql://ann:hidden%20word@db.example/data"
    assert "hidden" not in url.scrubbed(
        "login of ann with 'hidden word' at postgresql://ann:hidden%20word@db.example failed"
    )


def test_every_spelling_of_a_secret_is_taken_out_of_messages() -> None:
    url = from_environment("postgresql://$DB_USER:$DB_PASSWORD@host/data")
    said = f"{url.url} and p@ss/w?rd 100% and\n p%40ss/w%3Frd%20100%25 and aws-secret"
    assert url.scrubbed(said) == (
        "postgresql://$DB_USER:$DB_PASSWORD@host/data and $DB_PASSWORD and $DB_PASSWORD and $AWS_SECRET_ACCESS_KEY"
    )
    assert "p@ss" not in repr(url)
    assert url.shown == "postgresql://$DB_USER:$DB_PASSWORD@host/data"


@pytest.mark.parametrize(
    "template",
    [
        "postgresql://ann:hunter2@host/data",
        "postgresql://ann:hunter2$DB_USER@host/data",
        "postgresql://:hunter2@host/data",
        "postgresql://host/data?user=ann&password=hunter2",
        "https://hunter2@host/data.csv",
        "https://ann:hunter2@host/data.csv",
        "https://host/data.csv?X-Amz-Signature=hunter2",
        "https://host/data.csv?a=1&sig=hunter2",
        "https://host/data.csv?api_key=hunter2",
        "https://host/data.csv?access_token=hunter2",
        "https://host/data.csv?auth=hunter2",
        "https://host/data.csv?access=hunter2",
        "https://host/data.csv?pass=hunter2",
        "https://host/data.csv?pass%77ord=%26hunter2",
        "https://host/data.csv?password=%24hunter2",
        "https://host/data.csv#access_token=hunter2",
        "https://ann:hunter2/x@host/data.csv",
        "simplecache::https://ann:hunter2@host/data.csv",
        "s3://ann:hunter2/x@bucket/data.csv",
        "ann:hunter2@host/data",
        "postgresql+psycopg://ann:hunter2/x@host/data",
        "postgresql+psycopg://ann:x/hunter2@host/data",
        "postgresql://ann:hunter2#x@host/data",
        "postgresql://ann:hunter2?x@host/data",
        "postgresql://ann:$DB_PASSWORD@hunter2@host/data",
        "postgresql://ann/x:hunter2@host/data",
        "postgresql://ann:hunter2@host:$DB_PORT/data",
        "postgresql://ann@host/data?options=-cpassword%3Dhunter2",
        "postgresql://ann@host/data?options=-c+password%3Dhunter2",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BUID%3Dann%3BPWD%3Dhunter2",
        "mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3D%7Bhunter2%7D%3BServer%3Dh",
    ],
)
def test_a_secret_that_is_written_out_is_refused_without_being_repeated(template: str) -> None:
    with pytest.raises(SourceError, match=r"written out, and this file goes into Git.*in the environment") as refused:
        from_environment(template)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        "sqlite:///data/reviews.db",
        "sqlite:///C:/data/ann@home.db",
        "postgresql://ann@host/data",
        "postgresql://ann@host:5432/data?application_name=ann%40home&require_auth=scram-sha-256&passfile=/run/passes",
        "mssql+pyodbc:///?odbc_connect=Server%3Dhost%3BTrusted_Connection%3Dyes",
        "https://host/a.csv?version=3",
        "https://host:8443/a.csv?author=ann&accessed=yes",
        "https://host/ann@home/a.csv",
        "s3://bucket/a*.csv",
    ],
)
def test_a_url_without_secrets_is_left_as_it_is(template: str) -> None:
    assert from_environment(template).url == template


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("mssql+pyodbc:///?odbc_connect=$DB_PASSWORD", "mssql+pyodbc:///?odbc_connect=p%40ss%2Fw%3Frd+100%25"),
        ("postgresql://$DB_USER:$DB_PASSWORD@h:$DB_USER/d", "postgresql://ann:p%40ss%2Fw%3Frd%20100%25@h:ann/d"),
        ("https://$DB_USER:${DB_USER}@host/b@c.csv", "https://ann:ann@host/b@c.csv"),
        ("https://host/a.csv?auth=$DB_USER&options=-cpassword%3D${DB_USER}", None),
    ],
)
def test_a_secret_may_stand_in_the_environment_wherever_it_goes(template: str, url: str | None) -> None:
    assert from_environment(template).url == (url or template.replace("${DB_USER}", "ann").replace("$DB_USER", "ann"))


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(SourceError, match=r"names \$NOT_SET, which the environment does not have.*export NOT_SET=…"):
        from_environment("postgresql://$DB_USER:$NOT_SET@host/data")
