"""Low-rank additions to a model's weights (LoRA; Hu et al. 2021), which learn instead of the weights themselves.

They stand inside of the model, so that the Trainer saves it and goes on from it as from any other. What leaves training
is merged, W + (alpha / rank) B A, under the names that the architecture has without them.
"""

from typing import TYPE_CHECKING, Any

from tasks.errors import ParamsError, did_you_mean
from tasks.params import Lora

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ADAPTER = "default"


def adapt(model: "PreTrainedModel", lora: Lora) -> None:
    """Put additions into the modules that `lora` names; nothing else learns but a head that is new.

    Their beginning comes from torch's global generator: seed it before. Raises ParamsError for a name that no linear
    module of the model's body has.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    linear = {
        name.rpartition(".")[2]: module
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    for name in lora.targets:
        if name not in linear:
            raise ParamsError(
                f"train.lora.targets names {name!r}, but the model has no linear module of that name."
                f"{did_you_mean(name, linear)} Known: {', '.join(sorted(linear))}."
            )
    head = [weights for name, weights in model.named_parameters() if not _is_learned_before(model, name)]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        # GPT-2 keeps its weights the other way round.
        fan_in_fan_out=any(isinstance(linear[name], Conv1D) for name in lora.targets),
    )
    inject_adapter_in_model(config, model, _ADAPTER)
    for weights in head:
        weights.requires_grad_(True)


def _is_learned_before(model: "PreTrainedModel", name: str) -> bool:
    """Of the body, or what turns its vectors into tokens; a classifier is neither."""
    into_tokens = model.get_output_embeddings()
    of_tokens = [] if into_tokens is None else [id(weights) for weights in into_tokens.parameters()]
    return name.startswith(f"{model.base_model_prefix}.") or id(model.get_parameter(name)) in of_tokens


def merged(model: "PreTrainedModel") -> "dict[str, Tensor]":
    """The weights with the additions in them, by the names of a model that has none. The model stays as it is."""
    import torch
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    weights = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            owner, _, rest = name.rpartition(".base_layer.")
            if owner in layers:
                added = layers[owner].get_delta_weight(_ADAPTER) if rest == "weight" else 0
                weights[f"{owner}.{rest}"] = tensor + added
            elif not any(part.startswith("lora_") for part in name.split(".")):
                weights[name] = tensor
    return weights
