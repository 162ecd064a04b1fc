"""`python -m tasks STAGE MODEL`: give a stage its paths and its params, and measure what it took."""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import MillError
from tasks.paths import CODE, STAGES, Paths

if TYPE_CHECKING:
    from tasks.params import Collect
    from tasks.problems import Problem
    from tasks.sources import Source

_SUMMARIES = {
    "collect": "read the source as pinned into raw shards with stable ids",
    "validate": "let Great Expectations sort rows into valid and quarantine",
    "clean": "normalise, redact, deduplicate and split",
    "tokenize": "turn text into memory-mapped token shards",
    "train": "fine-tune the base model, from the last whole checkpoint if there is one",
    "export": "write ONNX variants, check them against the checkpoint, choose one",
    "evaluate": "measure the exported model on the held-out rows",
    "deploy": "pack the release, and say whether it may be used",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one stage of one model from the top of the repository.

    Returns the exit code: 0, 1 for a failure that is explained, 130 for Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Run one stage of the line for one model.")
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for stage in STAGES:
        stages.add_parser(stage, help=_SUMMARIES[stage]).add_argument("model", help="a key of `models` in params.yaml")
    stages.add_parser("code", help="list the files that each stage's result depends on, for all models")
    chosen = parser.parse_args(arguments)
    address = chosen.stage if chosen.stage == "code" else f"{chosen.stage}@{chosen.model}"
    try:
        _code() if chosen.stage == "code" else run(chosen.stage, chosen.model)
    except MillError as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{address}: interrupted. What stood before still stands; run it again to go on.", file=sys.stderr)
        return 130
    return 0


def run(stage: str, model: str) -> None:
    """Run the stage and write how long and how much it took to `measured/`, for the stages that succeed."""
    stay_off_the_network()
    started, cpu_started = time.monotonic(), _cpu_seconds()
    BINDINGS[stage](model)
    from tasks.shards import write_json

    write_json(
        Paths(model).measured(stage),
        {
            "wall_seconds": round(time.monotonic() - started, 3),
            "cpu_seconds": round(_cpu_seconds() - cpu_started, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        },
    )


def stay_off_the_network() -> None:
    """Turn off what the frameworks would report about their use. What the user sets beforehand stands."""
    for name in ("GX_ANALYTICS_ENABLED", "DVC_NO_ANALYTICS", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "false" if name.startswith("GX") else "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _code() -> None:
    from tasks.code import code

    code(Path("tasks"), CODE)


def _collect(name: str) -> None:
    from tasks import sources
    from tasks.collect import Origin, collect
    from tasks.params import CollectFeedback, load, load_model
    from tasks.sources.feedback import Feedback

    paths, params, models = Paths(name), load_model(name), load().models
    pin = paths.source_pin if Path(params.pin) == paths.source_pin else None

    def source(kind: str, options: "Collect") -> "Source[Any]":
        """Labels have the types of the problem of the model that answered, where that model is of this repository."""
        answering = models.get(options.model) if isinstance(options, CollectFeedback) else None
        return Feedback(_problem(answering.problem).columns) if answering is not None else sources.load(kind)

    collect(
        pin,
        paths.forgotten,
        paths.collected,
        paths.report("collect"),
        params=params.collect,
        source=source(params.source, params.collect),
        problem=_problem(params.problem),
        feedback=Origin(paths.feedback_pin, params.feedback, source("feedback", params.feedback))
        if params.feedback
        else None,
    )


def _validate(name: str) -> None:
    from tasks.params import load_model
    from tasks.validate import validate

    paths, params = Paths(name), load_model(name)
    validate(
        paths.collected,
        paths.admissions,
        paths.valid,
        paths.quarantine,
        paths.report("validate"),
        paths.reports / "data_docs",
        params=params.validation,
        problem=_problem(params.problem),
    )


def _clean(name: str) -> None:
    from tasks.clean import clean
    from tasks.params import load_model

    paths, params = Paths(name), load_model(name)
    clean(paths.valid, paths.clean, paths.report("clean"), params=params.clean, problem=_problem(params.problem))


def _tokenize(name: str) -> None:
    from tasks.params import load_model
    from tasks.tokenize import tokenize

    paths, params = Paths(name), load_model(name)
    tokenize(
        paths.clean,
        paths.tokens,
        paths.report("tokenize"),
        params=params.tokenize,
        base=params.base,
        problem=_problem(params.problem),
    )


def _train(name: str) -> None:
    from tasks.params import load_model
    from tasks.train import train

    paths, params = Paths(name), load_model(name)
    train(
        paths.tokens,
        paths.checkpoint,
        paths.report("train"),
        paths.plots / "loss.json",
        paths.live,
        paths.work / "train",
        params=params.train,
        base=params.base,
        threads=params.threads,
        problem=_problem(params.problem),
    )


def _export(name: str) -> None:
    from tasks.export import export
    from tasks.params import load_model

    paths, params = Paths(name), load_model(name)
    export(
        paths.checkpoint,
        paths.tokens,
        paths.candidate,
        paths.report("export"),
        params=params.export,
        threads=params.threads,
        problem=_problem(params.problem),
    )


def _evaluate(name: str) -> None:
    from tasks.evaluate import evaluate
    from tasks.params import load_model

    paths, params = Paths(name), load_model(name)
    evaluate(
        paths.candidate,
        paths.clean,
        paths.scores,
        paths.report("evaluate"),
        paths.report("metrics"),
        paths.plots,
        paths.page("evaluate"),
        paths.measured("serving"),
        params=params.evaluate,
        threads=params.threads,
        problem=_problem(params.problem),
    )


def _deploy(name: str) -> None:
    from tasks.deploy import deploy
    from tasks.params import load_model

    paths, params = Paths(name), load_model(name)
    deploy(
        paths,
        paths.release,
        paths.report("deploy"),
        params=params,
        problem=_problem(params.problem),
    )


def _problem(name: str) -> "Problem":
    from tasks import problems

    return problems.load(name)


BINDINGS: dict[str, Callable[[str], None]] = {
    "collect": _collect,
    "validate": _validate,
    "clean": _clean,
    "tokenize": _tokenize,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "deploy": _deploy,
}


if __name__ == "__main__":
    sys.exit(main())
