"""What a model from scratch is built like: its sizes, and what of it is dropped by chance."""

from typing import Any

import pytest
import torch

from tasks import problems
from tasks.errors import ParamsError
from tasks.params import Scratch

SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 48, "max_positions": 64}

# The problem that builds it, and a weight between its hidden size and the inner one.
CASES = {
    "bert": ("text_classification", "bert.encoder.layer.1.intermediate.dense.weight"),
    "roberta": ("text_classification", "roberta.encoder.layer.1.intermediate.dense.weight"),
    "distilbert": ("question_answering", "distilbert.transformer.layer.1.ffn.lin1.weight"),
    "gpt2": ("text_generation", "transformer.h.1.mlp.c_fc.weight"),
    "llama": ("text_generation", "model.layers.1.mlp.up_proj.weight"),
    "opt": ("text_generation", "model.decoder.layers.1.fc1.weight"),
    "marian": ("translation", "model.decoder.layers.1.fc1.weight"),
    "bart": ("translation", "model.encoder.layers.1.fc1.weight"),
    "pegasus": ("translation", "model.decoder.layers.1.fc1.weight"),
}


def built(architecture: str, dropout: float) -> Any:
    problem = problems.load(CASES[architecture][0] if architecture in CASES else "text_generation")
    signature = {"labels": ["negative", "positive"]} if problem.label == "label" else {}
    base = Scratch(architecture=architecture, **SIZES)
    return problem.build(base, 300, signature, dropout=dropout, attention="eager").train()


@pytest.mark.parametrize("architecture", CASES)
def test_every_size_is_the_one_that_was_asked_for(architecture: str) -> None:
    weights = built(architecture, 0.0).state_dict()
    inner = CASES[architecture][1]
    assert sorted(weights[inner].shape) == [32, 48]
    assert inner.replace(".1.", ".2.") not in weights, "two layers"
    of_a_layer = {size for name, one in weights.items() if ".1." in name for size in one.shape}
    assert of_a_layer - {3 * 32} == {32, 48}, "but where queries, keys and values are in one"


@pytest.mark.parametrize("architecture", CASES)
def test_nothing_is_left_to_chance_where_dropout_is_nought_and_all_of_it_where_it_is_not(architecture: str) -> None:
    for rate in (0.0, 0.25):
        model = built(architecture, rate)
        dropped = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert dropped <= {rate}
        rates = {name: one for name, one in model.config.to_dict().items() if "drop" in name and "layer" not in name}
        assert set(rates.values()) == {rate}, rates
    batch = torch.ones((1, 8), dtype=torch.int64)
    given = {"input_ids": batch, **({"decoder_input_ids": batch} if model.config.is_encoder_decoder else {})}
    still, moving = built(architecture, 0.0), model
    assert torch.equal(still(**given)[0], still(**given)[0])
    assert not torch.equal(moving(**given)[0], moving(**given)[0])


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ("bloom", "base.feed_forward_size is 48, but bloom has no size of a name that is known here"),
        ("gpt22", "base.architecture is 'gpt22', which transformers does not have. Did you mean 'gpt2'?"),
    ],
)
def test_a_size_that_would_go_unheard_is_refused(architecture: str, sentence: str) -> None:
    with pytest.raises(ParamsError) as error:
        built(architecture, 0.0)
    assert sentence in str(error.value)
