"""Stage export: the checkpoint as ONNX, in full precision and compressed; the first variant within its limits is kept.

The kept variant is calibrated on the validation split, so that a probability of 0.8 is right four times in five.
"""

import logging
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from tasks.compression import COMPRESSIONS
from tasks.errors import LineStopped, ParamsError
from tasks.params import Export
from tasks.pretrained import quiet
from tasks.problems import Problem
from tasks.problems._decoder import KEPT, KEPT_ON
from tasks.runtime import open_session, run
from tasks.shards import atomic_folder, read_json, require_space, write_json
from tasks.tokens import load_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPSET = 20
_BATCH = 64


def export(
    checkpoint: Path,
    tokens: Path,
    candidate: Path,
    report: Path,
    *,
    params: Export,
    threads: int,
    problem: Problem,
) -> None:
    """Write the release candidate: `model.onnx`, `tokenizer.json`, `runtime.json`.

    Raises LineStopped where every variant answers too differently from the checkpoint.
    """
    facts = read_json(checkpoint / "signature.json")
    require_space(candidate, 8 * (checkpoint / "model.safetensors").stat().st_size)
    torch.set_num_threads(threads)
    quiet()
    model = problem.build(
        str(checkpoint), facts["vocabulary"], facts["signature"], dropout=0.0, attention="eager"
    ).eval()
    held_out = load_tokens(tokens, "validation").drop(problem.targets)
    checked = held_out.head(params.check_rows)
    truth = _torch_outputs(problem, model, checked, facts["pad_id"])

    with atomic_folder(candidate) as folder:
        files = {name: folder / f"{name}.onnx" for name in ("fp32", *COMPRESSIONS)}
        to_onnx(problem, model, checked.head(2), facts["pad_id"], files["fp32"])
        variants: dict[str, dict[str, Any]] = {}
        for name in params.variants:
            if name in COMPRESSIONS:
                COMPRESSIONS[name](files["fp32"], files[name])
            session = open_session(files[name], threads)
            found = run(session, problem, checked, facts["pad_id"], _BATCH)
            difference, changed = problem.compare(truth, found)
            variants[name] = {
                "bytes": files[name].stat().st_size,
                "changed_answers": round(changed, 6),
                "probability_difference": round(difference, 6),
                **_perplexity(problem, found, checked),
            }
        expected = _perplexity(problem, truth, checked)
        kept = _choose(variants, expected.get("perplexity"), params)
        session = open_session(files[kept], threads)
        outputs = run(session, problem, held_out, facts["pad_id"], _BATCH)
        calibration = problem.calibrate(outputs, load_tokens(tokens, "validation"), facts["signature"])
        files[kept].rename(folder / "model.onnx")
        for path in files.values():
            path.unlink(missing_ok=True)
        shutil.copyfile(checkpoint / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
        described = {name: facts[name] for name in ("base", "max_tokens", "pad_id", "problem", "signature", "tidy")}
        write_json(folder / "runtime.json", {**described, "calibration": calibration, "variant": kept})
    write_json(
        report,
        {
            "calibration": calibration,
            "checked_rows": len(checked),
            "released": kept,
            "variants": variants,
            **({"checkpoint": expected} if expected else {}),
        },
    )


def to_onnx(problem: Problem, model: "PreTrainedModel", rows: pl.DataFrame, pad_id: int, path: Path) -> None:
    """Trace the model on two rows into one ONNX file whose batch and length are free, and the cache's places."""
    arrays = problem.traced(model, problem.batch(rows, pad_id))
    example: dict[str, Any] = {}
    free: dict[str, Any] = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array)
        if name.startswith(KEPT):
            group = name.partition(".")[0]
            example.setdefault(group, []).append(tensor)
            free.setdefault(group, []).append(_free(0, 2))
        else:
            example[name], free[name] = tensor, _free(*range(min(array.ndim, 2)))
    kept_on = [KEPT_ON + name.removeprefix(KEPT) for name in arrays if name.startswith(KEPT)]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports operators of packages that are not used here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter calls torch's own deprecated names
        program = torch.onnx.export(
            problem.exportable(model).eval(),
            kwargs=example,
            dynamic_shapes=free,
            input_names=list(arrays),
            output_names=[*problem.outputs, *problem.decoding, *kept_on],
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
            dynamo=True,
        )
    assert program is not None  # noqa: S101 - dynamo=True always gives one
    proto = program.model_proto
    # The exporter notes in which file and line of which machine each operation was called.
    for graph in (proto.graph, *proto.functions):
        for part in (*graph.node, *graph.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _free(*axes: int) -> dict[int, Any]:
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def _torch_outputs(
    problem: Problem, model: "PreTrainedModel", encoded: pl.DataFrame, pad_id: int
) -> dict[str, NDArray[Any]]:
    module = problem.exportable(model).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(encoded), _BATCH):
            batch = problem.batch(encoded[start : start + _BATCH], pad_id)
            given = module(**{name: torch.from_numpy(array) for name, array in batch.items()})
            parts.append([array.numpy() for array in given[: len(problem.outputs)]])
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(problem.outputs)}


def _perplexity(problem: Problem, outputs: Mapping[str, NDArray[Any]], encoded: pl.DataFrame) -> dict[str, float]:
    found = problem.perplexity(outputs, encoded)
    return {} if found is None else {"perplexity": round(found, 6)}


def _choose(variants: Mapping[str, Mapping[str, Any]], perplexity: float | None, params: Export) -> str:
    """The first variant within the limits, in the order of params. `perplexity` is the checkpoint's."""
    limit = params.max_perplexity_difference
    if limit is not None and perplexity is None:
        raise ParamsError(
            f"export.max_perplexity_difference is {limit}, but the problem predicts no tokens, so that it has no "
            "perplexity. Write null."
        )
    most = math.inf if limit is None or perplexity is None else perplexity * (1 + limit)
    for name in params.variants:
        found = variants[name]
        if (
            found["probability_difference"] <= params.max_probability_difference
            and found["changed_answers"] <= params.max_changed_answers
            and found.get("perplexity", 0.0) <= most
        ):
            return name
    figures = "; ".join(
        f"{name}: probability differs by up to {found['probability_difference']}, "
        f"{found['changed_answers']:.2%} of the answers changed"
        + (f", perplexity {found['perplexity']:.3f} after {perplexity:.3f}" if perplexity is not None else "")
        for name, found in variants.items()
    )
    raise LineStopped(
        f"No exported variant is within export.max_probability_difference ({params.max_probability_difference}) and "
        f"export.max_changed_answers ({params.max_changed_answers:.2%}) of the checkpoint"
        + (f", and export.max_perplexity_difference ({limit:.2%}) above it" if limit is not None else "")
        + f". {figures}. Add fp32 to export.variants, or widen a limit."
    )
