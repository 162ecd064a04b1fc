"""The model card, in Hugging Face's format: metadata that machines read, then what a person wants to know.

Mitchell et al. 2019, Model Cards for Model Reporting, has the sections: use, data, training, evaluation, limits.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.params import Model, Scratch
from tasks.pretrained import GGUF, PACKAGE
from tasks.problems import Problem


def model_card(
    model: str, verdict: str, reasons: Sequence[str], reports: Mapping[str, Any], params: Model, problem: Problem
) -> str:
    """The text of README.md. `reports` are those of validate, clean, export and evaluate, by stage."""
    metadata = _metadata(model, reports["evaluate"], params, problem)
    sections = (
        f"# {model}\n\n{params.deploy.card.purpose}",
        _verdict(verdict, reasons),
        _use(params, problem),
        _data(reports, params),
        _training(params, reports["export"]),
        _evaluation(reports["evaluate"], params),
        f"## Limits\n\n{params.deploy.card.limits.strip()}",
    )
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(model: str, evaluation: Mapping[str, Any], params: Model, problem: Problem) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = problem.name.replace("_", "-")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=model,
            dataset_name=f"{model}, held-out rows",
            dataset_split="test",
            metric_type=name,
            metric_value=found["value"],
            metric_args={"interval": [found["low"], found["high"]], "confidence": params.evaluate.confidence},
        )
        for name, found in sorted(evaluation["metrics"].items())
        # The metrics of one label, f1[positive], stand in the text: no reader of metadata knows their names.
        if found["value"] is not None and "[" not in name
    ]
    card = ModelCardData(
        base_model=_hub_id(params.base),
        eval_results=results,
        language=params.deploy.card.language,
        library_name="onnx",
        license=params.deploy.card.licence,
        model_name=model,
        pipeline_tag=task,
        tags=["modelmill"],
    )
    return str(card.to_yaml())


def _verdict(verdict: str, reasons: Sequence[str]) -> str:
    if not reasons:
        return f"Verdict: **{verdict}**."
    return f"Verdict: **{verdict}**. It must not be used.\n\n{_bullets(reasons)}"


def _use(params: Model, problem: Problem) -> str:
    words = " and ".join(f"`{name}`" for name in problem.inputs)
    return (
        "## Use\n\n"
        f"`model.onnx` runs under ONNX Runtime, with `tokenizer.json` and at most {params.tokenize.max_tokens} tokens "
        f"of {words}; `runtime.json` says what its outputs mean. `golden.json` has rows with the answers to expect."
    )


def _data(reports: Mapping[str, Any], params: Model) -> str:
    rows, validated, cleaned = reports["evaluate"]["rows"], reports["validate"]["rows"], reports["clean"]
    redacted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(cleaned["redacted"].items()) if count)
    dropped = ", ".join(f"{count:,} {_reason(name)}" for name, count in sorted(cleaned["dropped"].items()) if count)
    collect = params.collect.model_dump(mode="json", serialize_as_any=True)
    origin = next(collect[name] for name in ("path", "url", "package") if name in collect)
    chosen = f", where {params.collect.where}" if params.collect.where else ""
    splits = _table(
        ("Split", "Rows"), [(split, f"{rows.get(split, 0):,}") for split in ("train", "validation", "test")]
    )
    return (
        "## Data\n\n"
        f"From `{origin}`{chosen}. Of {validated['collected']:,} rows, {validated['quarantined']:,} broke the data "
        f"contract and were set aside. Text was normalised; personal data was replaced by pseudonyms "
        f"({redacted or 'none was found'}); of {cleaned['rows_in']:,} rows {cleaned['rows_kept']:,} were kept "
        f"(dropped: {dropped or 'none'}), and split by {params.clean.split.by}.\n\n{splits}"
    )


def _training(params: Model, export: Mapping[str, Any]) -> str:
    train = params.train
    settings = [
        ("Base", "from scratch" if isinstance(params.base, Scratch) else f"`{params.base}`"),
        ("Epochs, at most", train.epochs),
        ("Learning rate", f"{train.learning_rate:g}"),
        ("Batch", train.batch_size * train.gradient_accumulation),
        ("LoRA", f"rank {train.lora.rank} on {', '.join(train.lora.targets)}" if train.lora else "no"),
        ("Frozen", ", ".join(train.freeze) or "nothing"),
        ("Seed", train.seed),
        ("Released variant", export["released"]),
    ]
    kept = export["variants"][export["released"]]
    return (
        f"## Training\n\n{_table(('Setting', 'Value'), settings)}\n\n"
        f"Against the checkpoint, the released variant changes {kept['changed_answers']:.2%} of the answers; "
        f"probabilities differ by {kept['probability_difference']:.4f} at most." + _perplexities(export)
    )


def _perplexities(export: Mapping[str, Any]) -> str:
    """How surprised each variant is by the same rows, where the problem predicts tokens."""
    if "checkpoint" not in export:
        return ""
    expected = export["checkpoint"]["perplexity"]
    rows = [
        (
            name,
            f"{found['bytes'] / 1e6:.1f}",
            f"{found['perplexity']:.3f}",
            f"{found['perplexity'] / expected - 1:+.2%}",
        )
        for name, found in sorted(export["variants"].items())
    ]
    header = ("Variant", "MB", "Perplexity per token", "Above the checkpoint")
    return f"\n\n{_table(header, [('checkpoint', '', f'{expected:.3f}', ''), *rows])}"


def _evaluation(evaluation: Mapping[str, Any], params: Model) -> str:
    share = f"{100 * params.evaluate.confidence:g}%"
    header = ("Metric", "Value", f"{share} interval")
    metrics = _table(header, [(name, *_figures(found)) for name, found in sorted(evaluation["metrics"].items())])
    headline = evaluation["headline_metric"]
    baselines = _table(
        ("Baseline", headline, f"{share} interval", "beaten"),
        [
            (name, *_figures(found["metrics"][headline]), "yes" if found["beaten"] else "no")
            for name, found in sorted(evaluation["baselines"].items())
        ],
    )
    slices = _table(
        ("Slice", "Rows", headline, f"{share} interval"),
        [
            (f"{column} = {value}", f"{found['rows']:,}", *_figures(found["metrics"][headline]))
            for column, values in sorted(evaluation["slices"].items())
            for value, found in sorted(values.items())
        ],
    )
    parts = [f"## Evaluation\n\n{evaluation['headline']}", metrics, baselines]
    return "\n\n".join([*parts, slices] if evaluation["slices"] else parts)


def _figures(found: Mapping[str, float | None]) -> tuple[str, str]:
    if found["value"] is None:
        return "undefined", ""
    return f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"


def _hub_id(base: str | Scratch) -> str | None:
    if (
        isinstance(base, Scratch)
        or base.startswith(PACKAGE)
        or base.endswith(GGUF)
        or Path(base).is_dir()
        or base.count("/") != 1
    ):
        return None
    return base


def _reason(name: str) -> str:
    return name.removesuffix("_of").removesuffix("_with").replace("_", " ")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
