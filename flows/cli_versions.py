"""The commands about versions: made anew, compared, put in use and back."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_arguments import Model, VersionName, Why

app = typer.Typer()


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


@app.command(hidden=True)
def inputs(model: Model) -> None:
    """Write down what this worktree's line would learn from, and check its gate. `mill retrain` asks for it."""
    from flows.gating import check_gate
    from flows.inputs import note_inputs

    check_gate(model, Path("params.yaml"))
    note_inputs(Path(), model)


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
