"""Decoders on the line: what they may start from, what of them learns, and which variant is released."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from flows.recipes import add
from tasks.errors import LineStopped, ParamsError
from tasks.export import export, to_onnx
from tasks.params import Lora, Model, TrainedTokenizer, load_model
from tasks.pretrained import load_tokenizer
from tasks.problems.text_generation import PROBLEM
from tasks.shards import ShardWriter, read_json
from tasks.tokenize import tokenize
from tasks.train import train
from tests.conftest import REPOSITORY, TIDY, shrunk
from tests.gguf_file import write_gguf


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The recipe's, shrunk to what learns in a second."""
    root = tmp_path_factory.mktemp("recipe")
    for name in ("params.yaml", "dvc.yaml", "recipes"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    add("mine", "text_generation", root)
    model = shrunk(load_model("mine", root / "params.yaml"))
    return model.model_copy(
        update={
            "train": model.train.model_copy(update={"epochs": 1, "batch_size": 4, "early_stopping": None}),
            "tokenize": model.tokenize.model_copy(
                update={"tokenizer": TrainedTokenizer(algorithm="bpe", vocabulary=400)}
            ),
        }
    )


def learned(params: Model, out: Path, base: Any = None, tokenizer: Any = None, **changes: Any) -> Path:
    """Tokenize the examples and train on them."""
    rows = pl.concat([PROBLEM.examples()] * 8)
    rows = rows.with_columns(
        id=pl.format("r{}", pl.int_range(len(rows))), split=pl.Series(["train"] * 36 + ["validation"] * 12)
    )
    (out / "clean").mkdir(parents=True)
    writer = ShardWriter(out / "clean", 250, rows.schema)
    writer.write(rows)
    writer.finish(tidy=TIDY)
    base = base or params.base
    section = params.tokenize.model_copy(update={"tokenizer": tokenizer or params.tokenize.tokenizer})
    tokenize(out / "clean", out / "tokens", out / "tokenize.json", params=section, base=base, problem=PROBLEM)
    train(
        out / "tokens",
        out / "checkpoint",
        out / "train.json",
        out / "loss.json",
        out / "live",
        out / "work",
        params=params.train.model_copy(update=changes),
        base=base,
        threads=1,
        problem=PROBLEM,
    )
    return out


def exported(params: Model, out: Path, to: Path, **changes: Any) -> dict[str, Any]:
    section = params.export.model_copy(update=changes)
    export(
        out / "checkpoint",
        out / "tokens",
        to / "candidate",
        to / "export.json",
        params=section,
        threads=1,
        problem=PROBLEM,
    )
    return dict(read_json(to / "export.json"))


@pytest.fixture(scope="module")
def made(params: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(params, tmp_path_factory.mktemp("made"), epochs=4)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(out / "checkpoint" / "model.safetensors"))


WIDE = {"max_probability_difference": 1.0, "max_changed_answers": 1.0}


def test_the_exported_model_is_as_surprised_as_its_checkpoint_and_the_report_says_so(
    params: Model, made: Path, tmp_path: Path
) -> None:
    variants = ["int8", "int8_blocks", "fp32"]
    report = exported(params, made, tmp_path, variants=variants, max_perplexity_difference=None, **WIDE)
    checkpoint = report["checkpoint"]["perplexity"]
    assert report["variants"]["fp32"]["perplexity"] == pytest.approx(checkpoint, rel=1e-4)
    assert report["variants"]["int8"]["perplexity"] == pytest.approx(checkpoint, rel=0.1)
    assert report["variants"]["int8_blocks"]["perplexity"] == pytest.approx(checkpoint, rel=1e-3)
    rows = PROBLEM.encode(
        PROBLEM.examples(), Tokenizer.from_file(f"{made}/checkpoint/tokenizer/tokenizer.json"), {}, 48
    )
    model = PROBLEM.build(f"{made}/checkpoint", 400, {}, dropout=0.0, attention="eager").eval()
    with torch.inference_mode():
        surprises = [
            float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            for ids in (torch.tensor([row.to_list()]) for row in rows["input_ids"])
        ]
    num_tokens = sum(len(row) - 1 for row in rows["input_ids"])
    assert checkpoint == pytest.approx(math.exp(sum(surprises) / num_tokens), rel=1e-3)


def test_a_variant_that_is_more_surprised_than_the_limit_is_not_released(
    params: Model, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(source: Path, target: Path) -> None:
        model = onnx.load(source)
        largest = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        largest.raw_data = bytes(len(largest.raw_data))
        onnx.save(model, target)

    def once(*arguments: Any) -> None:
        """What is compared are the limits: the same checkpoint need not be traced three times."""
        *about, path = arguments
        if not (tmp_path / "traced.onnx").exists():
            to_onnx(*about, tmp_path / "traced.onnx")
        shutil.copyfile(tmp_path / "traced.onnx", path)

    monkeypatch.setattr("tasks.export.COMPRESSIONS", {"int8": damaged})
    monkeypatch.setattr("tasks.export.to_onnx", once)
    limit: dict[str, Any] = {"max_perplexity_difference": 0.01, **WIDE}
    assert exported(params, made, tmp_path / "a", variants=["int8", "fp32"], **limit)["released"] == "fp32"
    with pytest.raises(LineStopped, match=r"export\.max_perplexity_difference \(1\.00%\) .* perplexity 400\.000 after"):
        exported(params, made, tmp_path / "b", variants=["int8"], **limit)
    loose = limit | {"max_perplexity_difference": 1000.0}
    assert exported(params, made, tmp_path / "c", variants=["int8", "fp32"], **loose)["released"] == "int8"


def published(made: Path, folder: Path) -> Path:
    """The tokenizer stands beside the weights, as everywhere that weights are published."""
    shutil.copytree(made / "checkpoint", folder)
    shutil.copytree(folder / "tokenizer", folder, dirs_exist_ok=True)
    return folder


LOADED = """
import sys, torch
from tasks.pretrained import load_tokenizer
from tasks.problems.text_generation import PROBLEM
for base in sys.argv[1:]:
    model = PROBLEM.build(base, 400, {}, dropout=0.0, attention="eager").eval()
    ids = load_tokenizer(base).backend_tokenizer.encode("The sun rises", add_special_tokens=False).ids
    with torch.inference_mode():
        print(ids, model(input_ids=torch.tensor([ids])).logits.argmax(-1).tolist())
"""


def test_a_package_and_a_models_name_on_a_hub_are_bases_as_a_folder_is(made: Path, tmp_path: Path) -> None:
    """What a hub gave before stands in its cache, which answers without a network."""
    folder = published(made, tmp_path / "a_package" / "weights")
    (tmp_path / "a_package" / "__init__.py").touch()
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    bases = [str(folder), "package:a_package/weights", "someone/tiny"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *bases], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said[0].startswith("[")
    assert said == [said[0]] * 3


def test_a_folder_is_a_base_and_training_goes_on_from_its_weights(params: Model, made: Path, tmp_path: Path) -> None:
    base = published(made, tmp_path / "base")
    out = learned(params, tmp_path / "on", base=str(base), tokenizer="base", learning_rate=1e-9)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, weights(made)[name], atol=1e-5, rtol=1e-5)


def test_frozen_layers_of_a_decoder_stay_and_the_others_move(params: Model, made: Path, tmp_path: Path) -> None:
    base = published(made, tmp_path / "base")
    freeze = ["embed_tokens", "layers.0"]
    out = learned(params, tmp_path / "on", base=str(base), tokenizer="base", freeze=freeze)
    before, after = weights(made), weights(out)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if name.startswith(("model.embed_tokens.", "model.layers.0.", "lm_head."))]
    assert [name for name in moved if name.startswith("model.layers.1.")]


def test_a_decoder_learns_low_rank_additions_and_its_checkpoint_is_a_plain_one(
    params: Model, made: Path, tmp_path: Path
) -> None:
    base = published(made, tmp_path / "base")
    lora = Lora(rank=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    out = learned(params, tmp_path / "on", base=str(base), tokenizer="base", lora=lora)
    before, after = weights(made), weights(out)
    assert set(after) == set(before)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert exported(params, out, tmp_path, variants=["fp32"], **WIDE)["released"] == "fp32"


def test_half_a_batch_twice_is_a_whole_one(params: Model, tmp_path: Path) -> None:
    whole = learned(params, tmp_path / "whole", batch_size=4, epochs=1, precision="fp32")
    halves = learned(params, tmp_path / "halves", batch_size=2, gradient_accumulation=2, epochs=1, precision="fp32")
    reports = [read_json(out / "train.json") for out in (whole, halves)]
    assert [report["steps"] for report in reports] == [reports[0]["steps"]] * 2
    assert reports[0]["tokens"] == reports[1]["tokens"]
    assert reports[0]["validation_loss"] == pytest.approx(reports[1]["validation_loss"], rel=1e-3)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(halves)[name], tensor, atol=2e-2, rtol=0.1)


def test_a_gguf_file_is_a_base_with_its_weights_and_its_tokenizer(params: Model, made: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(f"{made}/checkpoint/tokenizer/tokenizer.json")
    model = PROBLEM.build(f"{made}/checkpoint", 400, {}, dropout=0.0, attention="eager").eval()
    file = tmp_path / "tiny.gguf"
    write_gguf(model, tokenizer, file)
    loaded = PROBLEM.build(str(file), 401, {}, dropout=0.0, attention="eager").eval()
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits[..., :400], model(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
    found = load_tokenizer(str(file)).backend_tokenizer
    for text in (*PROBLEM.examples()["text"], "🙂"):
        assert found.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, add_special_tokens=False).ids
    lora = Lora(rank=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    out = learned(params, tmp_path / "on", base=str(file), tokenizer="base", lora=lora)
    assert set(weights(out)) == set(weights(made))
    assert "quantization_config" not in read_json(out / "checkpoint/config.json")
    assert exported(params, out, tmp_path, variants=["fp32"], **WIDE)["released"] == "fp32"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("package:tests/none.gguf", r"has no file 'none\.gguf'"),
        ("nowhere/none.gguf", r"no tokenizer loads from there"),
        ("package:nothing_of_that_name/a.gguf", r"no installed package 'nothing_of_that_name'"),
    ],
)
def test_a_gguf_file_that_is_not_there_is_named(base: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        load_tokenizer(base)
