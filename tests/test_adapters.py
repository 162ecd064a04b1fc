"""LoRA: what learns, what leaves the stage, and that it goes on to the same bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks import problems
from tasks.adapters import adapt, merged
from tasks.errors import ParamsError
from tasks.params import Lora, Scratch
from tasks.pretrained import load_tokenizer
from tasks.shards import sha256_of
from tasks.train import build
from tests.conftest import Line
from tests.test_train import Journal, run

TARGETS = {
    "bert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "v_proj"),
}
CASES = [
    ("text_classification", "bert"),
    ("question_answering", "distilbert"),
    ("text_generation", "gpt2"),
    ("text_generation", "llama"),
]
SIGNATURE = {"labels": ["negative", "positive"]}
LORA = Lora(rank=4, alpha=8, dropout=0.0, targets=["query", "value"])


def lora_of(architecture: str) -> Lora:
    return LORA.model_copy(update={"targets": list(TARGETS[architecture])})


def built(problem_name: str, architecture: str):
    torch.manual_seed(1)
    base = Scratch(architecture=architecture, hidden_size=32, layers=2, heads=2, feed_forward_size=64, max_positions=64)
    problem = problems.load(problem_name)
    signature = SIGNATURE if problem_name == "text_classification" else {}
    return problem.build(base, 300, signature, dropout=0.0, attention="eager").eval()


def moved(model) -> None:
    """As if it had learned."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=3)


@pytest.mark.parametrize(("problem", "architecture"), CASES)
def test_the_merged_weights_say_what_the_adapted_model_says_under_the_names_of_the_base(
    problem: str, architecture: str, tmp_path: Path
) -> None:
    model, base = built(problem, architecture), built(problem, architecture)
    before = set(base.state_dict())
    adapt(model, lora_of(architecture))
    moved(model)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        base_says, expected = (one(input_ids=ids)[0] for one in (base, model))
    assert not torch.allclose(base_says, expected, atol=1e-3)
    model.save_pretrained(tmp_path, state_dict=merged(model))
    assert set(merged(model)) == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = type(base).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(input_ids=ids)[0], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(input_ids=ids)[0], expected)


@pytest.mark.parametrize(("problem", "architecture"), CASES)
def test_only_the_additions_learn_and_a_head_that_is_new(problem: str, architecture: str) -> None:
    model = built(problem, architecture)
    adapt(model, lora_of(architecture))
    learns = {name for name, weights in model.named_parameters() if weights.requires_grad}
    added = {name for name in learns if "lora_" in name}
    assert added
    heads = {name.partition(".")[0] for name in learns - added}
    assert (
        heads
        == {
            "text_classification": {"classifier"},
            "question_answering": {"qa_outputs"},
            "text_generation": set(),
        }[problem]
    )


def test_a_target_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ParamsError, match=r"names 'q_proj', but .* Known: dense, key, query, value"):
        adapt(built("text_classification", "bert"), lora_of("llama"))


def test_the_base_stays_as_it_was_and_the_checkpoint_is_a_plain_one(tiny: Line, tmp_path: Path) -> None:
    out = run(tiny.paths.tokens, tmp_path, epochs=1, lora=LORA)
    section = tiny.params.train.model_copy(update={"freeze": []})
    problem = problems.load("text_classification")
    vocabulary = len(load_tokenizer(str(tiny.paths.tokens / "tokenizer")))
    before = build(problem, tiny.params.base, vocabulary, SIGNATURE, section).state_dict()
    after = load_file(out / "checkpoint" / "model.safetensors")
    assert set(after) == set(before)
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    expected = {name for name in before if name.endswith(("query.weight", "value.weight"))}
    assert learned == expected | {"classifier.weight", "classifier.bias"}


def test_a_frozen_layer_gets_no_additions_that_learn(tiny: Line, tmp_path: Path) -> None:
    out = run(tiny.paths.tokens, tmp_path, epochs=1, lora=LORA, freeze=["encoder.layer.0"])
    section = tiny.params.train.model_copy(update={"freeze": []})
    vocabulary = len(load_tokenizer(str(tiny.paths.tokens / "tokenizer")))
    model = build(problems.load("text_classification"), tiny.params.base, vocabulary, SIGNATURE, section)
    before, after = model.state_dict(), load_file(out / "checkpoint" / "model.safetensors")
    assert not [name for name in after if "layer.0." in name and not torch.equal(before[name], after[name])]
    assert [name for name in after if "layer.1." in name and not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_killed_while_an_epoch_is_evaluated_it_ends_in_the_same_bits(
    tiny: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    changes = {"epochs": 2, "early_stopping": None, "lora": LORA.model_copy(update={"dropout": dropout})}
    whole = run(tiny.paths.tokens, tmp_path / "whole", **changes)
    evaluated = Journal.on_evaluate

    def killed(self, args, state, control, **others):
        if round(state.epoch) == 2:
            raise KeyboardInterrupt
        evaluated(self, args, state, control, **others)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "on_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny.paths.tokens, tmp_path / "killed", **changes)
    assert list((tmp_path / "killed/work").glob("*/checkpoint-*/whole.json"))
    again = run(tiny.paths.tokens, tmp_path / "killed", **changes)
    one, other = (sha256_of(out / "checkpoint/model.safetensors") for out in (whole, again))
    assert one == other
