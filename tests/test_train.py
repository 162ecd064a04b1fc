import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tasks import problems
from tasks.errors import DataError, LineStopped, OutOfSpace, ParamsError
from tasks.params import EarlyStopping
from tasks.shards import read_json, sha256_of
from tasks.tokens import load_tokens
from tasks.train import LengthGroupedSampler, build, choose_precision, only_one, train
from tasks.training import Journal, last_whole_checkpoint
from tests.conftest import REPOSITORY, Line

PROBLEM = problems.load("text_classification")

# Trains in a process of its own, so that it can be killed.
SCRIPT = """
import json, sys
from pathlib import Path
from tests.test_train import run
tokens, out, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
run(tokens, out, **changes)
"""


def run(tokens: Path, out: Path, base=None, **changes) -> Path:
    from tests.conftest import tiny_params

    params = tiny_params()
    section = params.train.model_copy(update={"epochs": 3, "batch_size": 16, "checkpoint_steps": 4, **changes})
    train(
        tokens,
        out / "checkpoint",
        out / "train.json",
        out / "loss.json",
        out / "live",
        out / "work",
        params=section,
        base=base or params.base,
        threads=1,
        problem=PROBLEM,
    )
    return out


def hashes(out: Path) -> list[str]:
    return [sha256_of(out / name) for name in ("checkpoint/model.safetensors", "train.json", "loss.json")]


def test_the_same_data_and_params_give_the_same_weights_and_another_seed_gives_others(tiny: Line, tmp_path):
    first, again = (run(tiny.paths.tokens, tmp_path / name) for name in ("first", "again"))
    other = run(tiny.paths.tokens, tmp_path / "other", seed=2)
    assert hashes(first) == hashes(again)
    assert hashes(first)[0] != hashes(other)[0]
    assert read_json(first / "train.json")["rows_seen_sha256"] != read_json(other / "train.json")["rows_seen_sha256"]


def test_the_report_says_by_which_epoch_and_step_rows_came_in_another_order(tiny: Line, tmp_path, monkeypatch):
    report = read_json(run(tiny.paths.tokens, tmp_path / "first") / "train.json")
    marks, steps = report["rows_seen_by_step"], report["evaluations"][0]["step"]
    assert len(marks) <= 50
    drawn = LengthGroupedSampler.__iter__

    def others_in_the_second(self):
        order = list(drawn(self))
        return iter([*order[16:32], *order[:16], *order[32:]] if self._epoch == 1 else order)

    monkeypatch.setattr(LengthGroupedSampler, "__iter__", others_in_the_second)
    again = read_json(run(tiny.paths.tokens, tmp_path / "again") / "train.json")["rows_seen_by_step"]
    places = [mark.partition(":")[0] for mark, other in zip(marks, again, strict=True) if mark != other]
    assert places == [mark.partition(":")[0] for mark in marks if int(mark.split()[3].rstrip(":")) > steps]
    assert places[0].startswith("epoch 2, step ")


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_training_killed_again_and_again_ends_in_the_same_bits(tiny: Line, tmp_path, dropout):
    whole = run(tiny.paths.tokens, tmp_path / "whole", dropout=dropout)
    out = tmp_path / "killed"
    kills = 0
    for checkpoints in (1, 2, 3):
        command = [sys.executable, "-c", SCRIPT, str(tiny.paths.tokens), str(out), json.dumps({"dropout": dropout})]
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("work/*/checkpoint-*"))) < min(checkpoints, 2):
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    assert hashes(run(tiny.paths.tokens, out, dropout=dropout)) == hashes(whole)
    assert [path.name for path in (out / "work").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("epochs", "killed_in", "every_epoch"),
    [
        (3, 3, False),
        pytest.param(1, 1, False, marks=pytest.mark.long),
        pytest.param(2, 1, True, marks=pytest.mark.long),
        (2, 2, True),
    ],
)
def test_a_kill_while_an_epoch_is_evaluated_loses_nothing(
    tiny: Line, tmp_path, monkeypatch, epochs, killed_in, every_epoch
):
    steps = read_json(run(tiny.paths.tokens, tmp_path / "probe", epochs=1) / "train.json")["steps"]
    changes = {"epochs": epochs, "early_stopping": None, "checkpoint_steps": steps if every_epoch else 4}
    whole = run(tiny.paths.tokens, tmp_path / "whole", **changes)
    evaluated = Journal.on_evaluate

    def killed(self, args, state, control, **others):
        if round(state.epoch) == killed_in:
            raise KeyboardInterrupt
        evaluated(self, args, state, control, **others)

    monkeypatch.setattr(Journal, "on_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.paths.tokens, tmp_path / "killed", **changes)
    monkeypatch.setattr(Journal, "on_evaluate", evaluated)
    assert hashes(run(tiny.paths.tokens, tmp_path / "killed", **changes)) == hashes(whole)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_kill_after_training_stopped_early_does_not_train_on(tiny: Line, tmp_path, monkeypatch):
    changes = {"epochs": 5, "early_stopping": EarlyStopping(patience=1, min_improvement=0.5)}
    whole = run(tiny.paths.tokens, tmp_path / "whole", **changes)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.train._publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiny.paths.tokens, tmp_path / "killed", **changes)
    assert hashes(run(tiny.paths.tokens, tmp_path / "killed", **changes)) == hashes(whole)


def test_two_trainings_of_one_model_at_once_do_not_meet(tiny: Line, tmp_path):
    with only_one(tmp_path / "work"), pytest.raises(LineStopped, match="Another training of this model is running"):
        run(tiny.paths.tokens, tmp_path)
    run(tiny.paths.tokens, tmp_path)


def test_training_on_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(tiny: Line, tmp_path, small_disk):
    whole = run(tiny.paths.tokens, tmp_path / "whole")
    out = tmp_path / "full"
    out.mkdir()
    (out / "work").symlink_to(small_disk("900k"))
    with pytest.raises(OutOfSpace, match="make room and run it again"):
        run(tiny.paths.tokens, out)
    (out / "work").unlink()
    assert hashes(run(tiny.paths.tokens, out)) == hashes(whole)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step, whole in ((4, True), (8, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / ("whole.json" if whole else "model.safetensors")).write_text("{}")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert not (tmp_path / "checkpoint-12").exists()


def test_an_order_is_drawn_from_seed_and_epoch_alone_and_has_every_row_once():
    lengths = np.random.default_rng(0).integers(4, 60, size=1000)
    sampler = LengthGroupedSampler(lengths, 16, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch + len(orders))
        orders.append(list(sampler))
    assert sorted(orders[0]) == list(range(1000))
    assert orders[0] == orders[2] != orders[1]


def test_batches_have_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(4, 60, size=1000)
    order = np.array(list(LengthGroupedSampler(lengths, 16, seed=1)))
    batches = [lengths[order[start : start + 16]] for start in range(0, 1000, 16)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.05 * lengths.sum()


def test_frozen_weights_stay_and_the_others_move(tiny: Line, tmp_path):
    out = run(tiny.paths.tokens, tmp_path, freeze=["embeddings", "encoder.layer.0"])
    section = tiny.params.train.model_copy(update={"freeze": []})
    facts = read_json(tiny.paths.tokens / "manifest.json")
    before = build(PROBLEM, tiny.params.base, facts["vocabulary"], facts["signature"], section).state_dict()
    after = load_file(out / "checkpoint" / "model.safetensors")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if name.startswith(("bert.embeddings.", "bert.encoder.layer.0."))]
    assert [name for name in moved if name.startswith("bert.encoder.layer.1.")]


def test_freezing_a_module_that_is_not_there_names_those_that_are(tiny: Line, tmp_path):
    with pytest.raises(ParamsError, match=r"train\.freeze names 'embedding', .* Known: embeddings"):
        run(tiny.paths.tokens, tmp_path, freeze=["embedding"])


def test_rows_that_are_longer_than_the_model_are_refused_before_anything_is_learned(tiny: Line, tmp_path):
    short = tiny.params.base.model_copy(update={"max_positions": 47})
    with pytest.raises(ParamsError, match=r"tokenize\.max_tokens is 48, but base\.max_positions .* 47 positions"):
        run(tiny.paths.tokens, tmp_path, base=short)
    signature = read_json(tiny.paths.tokens / "manifest.json")["signature"]
    PROBLEM.build(short, 600, signature, dropout=0.0, attention="sdpa").save_pretrained(tmp_path / "short")
    with pytest.raises(ParamsError, match=r"but base '.*/short' gives the model 47 positions\. Set .* to 47 at most"):
        run(tiny.paths.tokens, tmp_path, base=str(tmp_path / "short"))


def test_a_tokenizer_with_more_tokens_than_the_base_has_weights_for_is_refused(tiny: Line, tmp_path):
    facts = read_json(tiny.paths.tokens / "manifest.json")
    small = PROBLEM.build(tiny.params.base, 300, facts["signature"], dropout=0.0, attention="sdpa")
    small.save_pretrained(tmp_path / "small")
    said = rf"tokenize\.tokenizer has {facts['vocabulary']} tokens, but base '.*/small' has weights for 300\."
    with pytest.raises(ParamsError, match=said):
        run(tiny.paths.tokens, tmp_path, base=str(tmp_path / "small"))


def test_the_best_epoch_is_kept_and_training_stops_when_it_gets_no_better(tiny: Line, tmp_path):
    stop = EarlyStopping(patience=1, min_improvement=0.5)  # nothing improves that much
    out = run(tiny.paths.tokens, tmp_path, epochs=5, early_stopping=stop)
    report = read_json(out / "train.json")
    assert [evaluation["epoch"] for evaluation in report["evaluations"]] == [1, 2]
    assert report["best_epoch"] == 1


def test_the_loss_falls(tiny: Line, tmp_path):
    curve = read_json(run(tiny.paths.tokens, tmp_path, epochs=8) / "loss.json")
    losses = [point["loss"] for point in curve if point["split"] == "train"]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_every_row_is_learned_from_once_an_epoch(tiny: Line, tmp_path):
    report = read_json(run(tiny.paths.tokens, tmp_path, epochs=2, early_stopping=None) / "train.json")
    assert report["tokens"] == 2 * load_tokens(tiny.paths.tokens, "train")["input_ids"].list.len().sum()


def test_a_split_without_rows_is_named(tiny: Line):
    with pytest.raises(DataError, match="the test split has no rows"):
        load_tokens(tiny.paths.tokens, "test")


def test_only_safetensors_and_json_leave_the_stage(tiny: Line):
    kinds = {path.suffix for path in tiny.paths.checkpoint.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_precision_is_what_was_asked_and_auto_is_what_the_processor_has():
    assert choose_precision("fp32") == "fp32"
    assert choose_precision("bf16") == "bf16"
    flags = Path("/proc/cpuinfo").read_text()
    assert choose_precision("auto") == ("bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32")
