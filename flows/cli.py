"""The `mill` command. What a command needs is imported inside it, so that help is there at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import cli_live, cli_versions
from flows.cli_arguments import Model
from tasks.errors import MillError

REFUSED_CODE = 3


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
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="How the text begins, or what to translate.")],
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="How far it goes on at most: 64; a translation goes to its end.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; 1 draws as likely as the model has it.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest only; 0 from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Draw from the likeliest that have so much of the probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same text.")] = 0,
) -> None:
    """Go on with a text, or translate it, as the version in use has learned to, printed as it is written."""
    from flows.generate import generate as go_on
    from tasks.writing import Sampling

    sampling = Sampling(max_new_tokens or 64, temperature, top_k, top_p, seed)
    go_on(model, prompt, sampling, to_its_end=max_new_tokens is None)


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


# Without a name their commands stand beside these; in the order of the work.
app.add_typer(cli_versions.app)
app.add_typer(cli_live.app)


if __name__ == "__main__":
    main()
