"""The commands about what is in use: served, watched, traced, forgotten."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_arguments import Model

app = typer.Typer()


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Come back at once; `mill down` stops it.")] = False,
) -> None:
    """Start Prefect's server and dashboard, and run every model's schedule of params.yaml until Ctrl-C."""
    from flows.up import up as start

    raise typer.Exit(start(Path(), detach=detach))


@app.command()
def down() -> None:
    """Stop all that `mill up` started."""
    from flows.up import down as stop

    raise typer.Exit(stop(Path()))


@app.command()
def status() -> None:
    """Say for each model: champion, last run and its verdict, next run, what needs a person."""
    from flows.status import status as say_status

    raise typer.Exit(say_status(Path()))


@app.command()
def serve(
    port: Annotated[int | None, typer.Option("--port", help="Instead of flows.serve.port.", show_default=False)] = None,
) -> None:
    """Serve every model in use over HTTP, until Ctrl-C."""
    from flows.serve import serve as serve_models

    serve_models(Path(), port=port)


@app.command()
def feedback(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, JSON lines or Parquet with id and label.")],
) -> None:
    """Keep labels that came after the predictions, by the predictions' ids."""
    from flows.feedback import add_feedback

    print(add_feedback(Path(), model, file))


@app.command()
def monitor(model: Model) -> None:
    """Judge what a model was asked and answered since the last look, against the rows that its release was held to.

    Prints the verdict (ok, watch, alarm, or that the predictions are too few yet) and where to look. Exits with 3 on an
    alarm, with 0 otherwise.
    """
    from flows.monitor import monitor as look

    raise typer.Exit(look(Path(), model).exit_code)


@app.command()
def backup(file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")]) -> None:
    """Copy the journal of predictions as it stands at this moment, while the server runs."""
    from flows.feedback import back_up

    print(back_up(Path(), file))


key = typer.Typer(help="Who may ask the server for what.", no_args_is_help=True)
app.add_typer(key, name="key")


@key.command("add")
def add_key(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="A name for whoever asks.")],
    scope: Annotated[list[str] | None, typer.Option("--scope", help="predict, feedback or admin.")] = None,
    requests_a_minute: Annotated[
        int | None, typer.Option("--rate", min=1, help="Requests a minute; no limit without.", show_default=False)
    ] = None,
) -> None:
    """Make a key and print it, this once. The first key closes the server to those who have none."""
    from tasks.serving.keys import add_key as make_key

    print(make_key(Path(), client, scope or ["predict"], requests_a_minute))


@key.command("revoke")
def revoke_key(client: Annotated[str, typer.Argument(metavar="CLIENT")]) -> None:
    """Take a key back, at once."""
    from tasks.serving.keys import revoke_key as take_back

    take_back(Path(), client)


@app.command()
def trace(
    prediction: Annotated[
        str | None, typer.Argument(metavar="PREDICTION_ID", help="The `id` of an answer.", show_default=False)
    ] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="ROW_ID", help="Instead: who learned from this row.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --row: this model's alone.", show_default=False)
    ] = None,
    nearest: Annotated[int, typer.Option("--nearest", min=0, help="So many training rows next to the prediction.")] = 0,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="OUT.parquet", help="The version's rows, written there.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object of facts, for programs.")] = False,
) -> None:
    """Follow a prediction back to version, gate, commit, parameters, data and source; or a row to all that saw it.

    Exits with 1 where a link of the way is missing, or is not what the one before it names.
    """
    from flows.trace import trace as trace_prediction
    from flows.trace import trace_row

    if (prediction is None) == (row is None):
        raise typer.BadParameter("Give either a PREDICTION_ID or --row ROW_ID.")
    if row is not None:
        raise typer.Exit(trace_row(Path(), row, model, as_json=as_json))
    raise typer.Exit(trace_prediction(Path(), str(prediction), nearest=nearest, rows=rows, as_json=as_json))


@app.command()
def forget(
    rows: Annotated[list[str], typer.Argument(metavar="ROW_ID…", help="Ids of rows, or of predictions.")],
    model: Annotated[str, typer.Option("--model", help="Whose rows.", show_default=False)],
    why: Annotated[
        str,
        typer.Option("--why", help="The reason, kept in Git: the request's number, and no name.", show_default=False),
    ],
    purge: Annotated[
        bool, typer.Option("--purge", help="Also out of cache, remotes, kept files and journal; not to be undone.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Purge without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen, and what it costs.")] = False,
) -> None:
    """Take rows out of all later data, and mark the versions that saw them; with --purge out of what is kept as well.

    Exits with 1 where something could not be purged yet. Run again, it goes on.
    """
    from flows.forget import forget as forget_rows

    raise typer.Exit(forget_rows(Path(), rows, model, why=why, purge_too=purge, yes=yes, dry_run=dry_run))
