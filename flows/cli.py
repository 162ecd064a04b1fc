"""The `mill` command. What a command needs is imported inside it, so that help is there at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tasks.errors import MillError

REFUSED_CODE = 3

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A key of `models` in params.yaml.", show_default=False)]
VersionName = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="reviews@v1.4.0, or a model's name for its champion.", show_default=False),
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the tag.", show_default=False)]


class _Explained(TyperGroup):
    """Prints an explained failure as its message; any other exception is a defect and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MillError as error:
            print(f"mill {ctx.invoked_subcommand}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print(f"mill {ctx.invoked_subcommand}: interrupted. Run it again to go on.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Explained,
    help="From raw data to a gated, versioned model, one line for each model of params.yaml.",
    epilog="Exit codes: 0 done, 1 an explained failure, 2 wrong usage, 3 a release was refused, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point."""
    app()


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"mill {version('modelmill')}")
        raise typer.Exit


@app.callback()
def _always(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    from tasks.__main__ import stay_off_the_network

    stay_off_the_network()


@app.command()
def run(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Which models; all of params.yaml without.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Stages at the same time; flows.line.jobs without.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Run this stage though it is up to date: train, train@reviews."),
    ] = None,
) -> None:
    """Bring models up to date: run what is stale of their lines, and put accepted releases in use.

    Ends with a table of the stages and the verdict. Exits with 3 where a release was refused, 1 where a stage failed.
    """
    from flows.run import run as run_lines

    raise typer.Exit(run_lines(models or [], jobs=jobs, force=force or []))


@app.command()
def predict(
    model: Model,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="What to answer to; `-` reads lines from standard input.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line, with every field of the answer.")
    ] = False,
) -> None:
    """Answer with the version in use: a line for each text, the fields separated by tabs, the version last."""
    from flows.predict import predict as answer

    answer(model, texts, as_json=as_json)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="How the text begins.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How far it goes on at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; 1 draws as likely as the model has it.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest only; 0 from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Draw from the likeliest that have so much of the probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same text.")] = 0,
) -> None:
    """Go on with a text as the version in use has learned to, printed as it is written."""
    from flows.generate import generate as go_on
    from tasks.writing import Sampling

    go_on(model, prompt, Sampling(max_new_tokens, temperature, top_k, top_p, seed))


@app.command()
def score(
    model: Model,
    rows: Annotated[Path, typer.Argument(metavar="IN", help="A Parquet, CSV or JSON lines file, or a folder of them.")],
    scored: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="The rows, each with its answer.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace an OUT.parquet that came from something else.")
    ] = False,
) -> None:
    """Answer to every row of a file or a folder. Stopped at any moment and run again, it goes on.

    OUT has the columns of IN, the answer's, `reason` where a row has none, and the `version` that answered. A column of
    IN that has one of these names is called input_<name> there.
    """
    from flows.score import score as score_rows

    score_rows(model, rows, scored, force=force)


@app.command()
def pull(model: Model) -> None:
    """Look at the source, and pin what is there now: the next run collects it."""
    from flows.pull import pull as pull_source

    print(pull_source(model))


@app.command()
def admit(
    model: Model,
    mended: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The JSON lines that were mended.", show_default=False)
    ] = None,
) -> None:
    """Write quarantined rows out to be mended; with FILE, take the mended ones back in."""
    from flows.admit import admit as admit_rows

    print(admit_rows(model, mended))


@app.command()
def retrain(
    model: Model,
    force: Annotated[bool, typer.Option("--force", help="Also where nothing is new.")] = False,
    why: Why = "",
) -> None:
    """Pull, run the line in a worktree of `live`, gate, and promote what is better. Your working tree is not touched.

    Exits with 3 where the challenger was refused or kept out, 1 where something failed or a person has to decide.
    """
    from flows.retrain import retrain as retrain_model

    raise typer.Exit(retrain_model(Path(), model, force=force, why=why).exit_code)


@app.command(hidden=True)
def gate(model: Model, home: Annotated[Path, typer.Option("--home", help="The repository's main checkout.")]) -> None:
    """Judge the release of this worktree against the champion. `mill retrain` asks for it."""
    from flows.gating import judge_release

    print(judge_release(home, Path(), model))


@app.command()
def sync() -> None:
    """Bring the branch `live`, where scheduled runs land, into the branch you are on."""
    from flows.sync import sync as sync_live

    print(sync_live(Path()))


@app.command()
def versions(model: Annotated[str | None, typer.Argument(metavar="MODEL", help="All models without.")] = None) -> None:
    """List the versions of a model: when, its metric with interval, whether it is or was the champion, and why."""
    from flows.versions import print_versions

    print_versions(Path(), model)


@app.command()
def show(version: VersionName) -> None:
    """Show where a version comes from: commit, parameters, data, packages, metrics, the gate's decision."""
    from flows.versions import print_version

    print_version(Path(), version)


@app.command()
def promote(
    version: VersionName,
    why: Why,
    force: Annotated[
        bool, typer.Option("--force", help="Whatever the gate says; recorded together with the reason.")
    ] = False,
) -> None:
    """Put a version in use as the champion."""
    from flows.promotion import promote_by_name

    print(promote_by_name(Path(), version, why=why, force=force))


@app.command()
def rollback(
    model: Model,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="The champion before without.")] = None,
    why: Why = "",
) -> None:
    """Put the champion before this one, or VERSION, back in use."""
    from flows.promotion import rollback as roll_back

    print(roll_back(Path(), model, version, why=why))


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Free the version store and DVC's cache of what no tag in use, no kept version and no branch needs."""
    from flows.retention import gc as collect_garbage

    print(collect_garbage(Path(), dry_run=dry_run))


@app.command()
def verify(
    version: VersionName,
    here: Annotated[
        bool, typer.Option("--here", help="In this environment, where its packages are the lock's.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder in which it ran.")] = False,
) -> None:
    """Make a version again from its commit, lock and raw data alone, and certify what came out the same.

    Exits with 0 only where every stage agrees.
    """
    from flows.verify import verify as certify

    raise typer.Exit(certify(Path(), version, here=here, keep=keep))


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


@app.command()
def problems() -> None:
    """List the kinds of problems: what each reads, what it answers, how it is judged, and its recipe."""
    from flows.recipes import problem_lines

    print("\n".join(problem_lines()))


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new model's name.", show_default=False)],
    recipe: Annotated[str, typer.Option("--recipe", help="A file of recipes/.", show_default=False)],
) -> None:
    """Put a commented entry for another model into params.yaml, where all else stays as it stands."""
    from flows.recipes import add as add_model

    print("\n".join(add_model(name, recipe)))


@app.command()
def report() -> None:
    """Build reports/index.html, the page over all models."""
    from flows.index import build_index

    print(build_index(Path()))


if __name__ == "__main__":
    main()
