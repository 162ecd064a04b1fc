"""Arguments that several commands of `mill` take."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A key of `models` in params.yaml.", show_default=False)]
VersionName = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="reviews@v1.4.0, or a model's name for its champion.", show_default=False),
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the tag.", show_default=False)]
