import subprocess
import sys

import numpy as np
import onnx
import polars as pl
import pytest
import torch

from tasks import problems
from tasks.compression import COMPRESSIONS
from tasks.errors import DataError, LineStopped
from tasks.export import export
from tasks.runtime import load_runtime
from tasks.shards import read_json, sha256_of
from tasks.tokens import load_tokens
from tests.conftest import REPOSITORY, Line

PROBLEM = problems.load("text_classification")


def run(line: Line, out, **changes):
    params = line.params.export.model_copy(update=changes)
    paths = line.paths
    export(
        paths.checkpoint,
        paths.tokens,
        out / "candidate",
        out / "export.json",
        params=params,
        threads=line.params.threads,
        problem=PROBLEM,
    )
    return out / "candidate"


@pytest.fixture(scope="module")
def exported(tiny: Line, tmp_path_factory):
    """The tiny line's checkpoint, exported in every way."""
    out = tmp_path_factory.mktemp("exported")
    return {variant: run(tiny, out / variant, variants=[variant]) for variant in ("fp32", "int8", "int8_blocks")}


def torch_probabilities(line: Line, rows: pl.DataFrame) -> np.ndarray:
    """The checkpoint's own answer, one text at a time, by transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(line.paths.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(line.paths.checkpoint / "tokenizer")
    length = line.params.tokenize.max_tokens
    with torch.inference_mode():
        logits = [
            model(**tokenizer(text, truncation=True, max_length=length, return_tensors="pt")).logits[0]
            for text in rows["text"]
        ]
    return torch.stack(logits).softmax(-1).numpy()


@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-5), ("int8", 0.1), ("int8_blocks", 0.01)])
def test_what_is_exported_answers_as_transformers_does(tiny: Line, exported, reviews, variant, tolerance):
    rows = reviews.filter(pl.col("split") == "test").head(50)
    outputs = load_runtime(exported[variant], 2).outputs(rows.select("id", "text"))
    found = torch.from_numpy(outputs["logits"]).softmax(-1).numpy()
    assert np.abs(found - torch_probabilities(tiny, rows)).max() < tolerance


def test_the_pooled_embedding_does_not_depend_on_padding(exported, reviews):
    runtime = load_runtime(exported["fp32"], 2)
    rows = reviews.head(40).select("id", "text")
    together = runtime.outputs(rows, batch_size=40)["pooled_embedding"]
    alone = runtime.outputs(rows, batch_size=1)["pooled_embedding"]
    assert together.shape == (40, 32)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_answers_come_in_the_order_of_the_rows(exported, reviews):
    runtime = load_runtime(exported["fp32"], 2)
    rows = reviews.head(100).select("id", "text")
    order = np.random.default_rng(0).permutation(100)
    straight, shuffled = runtime.outputs(rows), runtime.outputs(rows[order])
    np.testing.assert_allclose(straight["logits"][order], shuffled["logits"], atol=1e-5)


def test_the_first_variant_within_the_limits_is_released(tiny: Line, tmp_path):
    run(tiny, tmp_path / "a", variants=["int8", "fp32"], max_probability_difference=1.0, max_changed_answers=1.0)
    run(tiny, tmp_path / "b", variants=["int8", "fp32"], max_probability_difference=1e-5, max_changed_answers=0.0)
    assert read_json(tmp_path / "a" / "export.json")["released"] == "int8"
    assert read_json(tmp_path / "b" / "export.json")["released"] == "fp32"
    assert set(read_json(tmp_path / "b" / "export.json")["variants"]) == {"fp32", "int8"}


def test_no_variant_within_the_limits_stops_the_line_with_the_figures(tiny: Line, tmp_path):
    with pytest.raises(LineStopped, match=r"No exported variant .* int8: probability differs by up to 0\.0"):
        run(tiny, tmp_path, variants=["int8"], max_probability_difference=0.0, max_changed_answers=0.0)
    assert not (tmp_path / "candidate").exists()


def test_what_is_compressed_is_a_fraction_of_the_size(exported):
    sizes = {variant: (folder / "model.onnx").stat().st_size for variant, folder in exported.items()}
    assert max(sizes[variant] for variant in COMPRESSIONS) < 0.7 * sizes["fp32"]


@pytest.mark.parametrize("variant", COMPRESSIONS)
def test_the_same_checkpoint_gives_the_same_bytes(tiny: Line, exported, tmp_path, variant):
    again = run(tiny, tmp_path, variants=[variant])
    for name in ("model.onnx", "runtime.json", "tokenizer.json"):
        assert sha256_of(again / name) == sha256_of(exported[variant] / name)


def test_two_products_of_int8_fit_into_the_sixteen_bits_that_a_processor_without_vnni_adds_them_in(exported):
    graph = onnx.load(exported["int8"] / "model.onnx").graph
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    weights = [stored[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) > 6
    largest_activation = 255
    for weights_KN in weights:
        pairs = np.abs(weights_KN.astype(int))[: len(weights_KN) // 2 * 2].reshape(-1, 2, weights_KN.shape[1])
        assert largest_activation * pairs.sum(axis=1).max() <= np.iinfo(np.int16).max


def test_a_row_answered_by_blocks_does_not_depend_on_what_stands_beside_it(exported, reviews):
    rows = reviews.head(40).select("id", "text")

    def moved(variant):
        runtime = load_runtime(exported[variant], 2)
        together, alone = (runtime.outputs(rows, batch_size=size)["logits"] for size in (40, 1))
        return np.abs(together - alone).max()

    assert 10 * moved("int8_blocks") < moved("int8")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression_says_nothing_leaves_nothing_and_sets_up_no_logging(exported, tmp_path, compression):
    program = (
        "import logging; from pathlib import Path; from tasks.compression import COMPRESSIONS\n"
        f"COMPRESSIONS[{compression!r}](Path({str(exported['fp32'] / 'model.onnx')!r}), Path('small.onnx'))\n"
        "assert (logging.getLogger().handlers, logging.root.manager.disable) == ([], 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]


def test_by_blocks_every_product_with_weights_has_int8_on_both_sides_and_tables_are_compressed_too(exported):
    model = onnx.load(exported["int8_blocks"] / "model.onnx")
    stored = {weight.name: weight for weight in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) > 6
    for node in products:
        said = {given.name: given.i for given in node.attribute}
        assert (said["bits"], said["block_size"], said["accuracy_level"]) == (8, 32, 4)
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"} & set(stored)
    assert len(looked_up) >= 3, "words, positions, kinds"
    assert onnx.TensorProto.FLOAT not in {stored[name].data_type for name in looked_up}
    assert sorted(said.domain for said in model.opset_import) == ["", "com.microsoft"]


def test_no_path_of_the_exporting_machine_is_in_the_file(exported):
    content = (exported["fp32"] / "model.onnx").read_bytes()
    assert str(REPOSITORY).encode() not in content
    assert b"site-packages" not in content
    onnx.checker.check_model(onnx.load_from_string(content))


def test_a_temperature_makes_held_out_probabilities_no_worse(tiny: Line, exported):
    runtime = load_runtime(exported["int8"], 2)
    held_out = load_tokens(tiny.paths.tokens, "validation")
    from tasks.runtime import run as run_encoded

    outputs = run_encoded(runtime.session, PROBLEM, held_out.drop("label"), runtime.pad_id, 64)

    def log_loss(calibration):
        answers = PROBLEM.answer(held_out, outputs, runtime.signature, calibration)
        right = np.array(answers["probabilities"].to_list())[np.arange(len(held_out)), held_out["label"].to_numpy()]
        return -np.log(right).mean()

    assert log_loss(runtime.calibration) <= log_loss({"temperature": 1.0}) + 1e-9


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "runtime.json"])
def test_a_missing_or_damaged_file_of_a_model_is_named(exported, tmp_path, name):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(exported["int8"], folder)
    (folder / name).write_bytes(b"not what it was")
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_runtime(folder, 1)
    (folder / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        load_runtime(folder, 1)


def test_a_caller_s_text_is_tidied_as_those_were_that_the_model_learned_from(exported):
    runtime = load_runtime(exported["fp32"], 2)
    raw = pl.DataFrame({"id": ["a"], "text": ["A&nbsp;warm <b>film</b>,\u200b   write to me@example.org"]})
    clean = pl.DataFrame({"id": ["a"], "text": ["A warm film, write to ⟨EMAIL_1⟩"]})
    assert runtime.predict(raw).equals(runtime.predict(clean))
    assert not runtime.predict(raw).equals(runtime.predict(clean.with_columns(text=pl.lit("something else"))))
