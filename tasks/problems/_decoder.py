"""A decoder as one graph: it reads a text at once, and writes token by token with what it remembers of those before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.problems import _text

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# A graph is traced with so many places that nobody looks at: the exporter takes sizes of 0 and 1 for constants. In use
# the cache begins with none.
EMPTY_PLACES = 2

# How the names of a graph's inputs begin that are a layer's keys or values, and of the outputs that they come back as.
# A step reads and writes each of them once; as one array with an axis for the layers it would be copied three times.
KEPT, KEPT_ON = "past_key_values.", "present."


def empty_cache(model: "PreTrainedModel", num_rows: int, num_places: int = EMPTY_PLACES) -> dict[str, NDArray[Any]]:
    """What the graph remembers at the beginning of a text, with so many places that hold nothing, all zeros.

    The keys and values of each layer (B, H, P, D), and `past_mask` (B, P), which says which places hold something.
    """
    layers, heads, width = _shape(model)
    nothing = np.zeros((num_rows, heads, num_places, width), np.float32)
    names = [f"{KEPT}{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return {**dict.fromkeys(names, nothing), "past_mask": np.zeros((num_rows, num_places), np.int64)}


def _shape(model: "PreTrainedModel") -> tuple[int, int, int]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def cache_of(kept: Sequence["Tensor"]) -> Any:
    """transformers' cache of the keys and values of each layer, one after the other."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache(list(zip(kept[::2], kept[1::2], strict=True)))


def kept_in(cache: Any) -> list["Tensor"]:
    """The keys and values of each layer, one after the other: what was known and what is new."""
    return [kept for layer in cache.layers for kept in (layer.keys, layer.values)]


def decoder_with_cache(model: "PreTrainedModel") -> "nn.Module":
    """A module from tokens and a cache to how likely they are, what may come next, and their part of the cache.

    `nll` (B) sums -log p over the tokens that are counted, of which there are `num_tokens` (B); `next_token` (B) is the
    likeliest after the last one, out of `logits` (BV). Then come the keys and values as they are now, those of the new
    tokens behind those that were given.
    """
    import torch

    class DecoderWithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: "Tensor",
            attention_mask: "Tensor",
            counted: "Tensor",
            past_key_values: "Sequence[Tensor] | None" = None,
            past_mask: "Tensor | None" = None,
        ) -> tuple["Tensor", ...]:
            if past_key_values is None or past_mask is None:
                *past_key_values, past_mask = map(torch.from_numpy, empty_cache(model, len(input_ids), 0).values())
            num_new, num_past = input_ids.shape[1], past_mask.shape[1]
            mask_BK = torch.cat([past_mask, attention_mask], 1)
            position_BK = (mask_BK.cumsum(1) - 1).clamp(min=0)
            query_T, key_K = torch.arange(num_new) + num_past, torch.arange(num_past + num_new)
            is_before_TK = key_K[None, :] <= query_T[:, None]
            is_itself_TK = key_K[None, :] == query_T[:, None]  # padding sees itself, or a row of nothing would be NaN
            allowed_BTK = (is_before_TK[None] & (mask_BK[:, None, :] > 0)) | is_itself_TK[None]
            bias_BTK = torch.where(allowed_BTK, 0.0, torch.finfo(torch.float32).min)
            out = self.model(
                input_ids=input_ids,
                attention_mask=bias_BTK[:, None],
                position_ids=position_BK[:, num_past:],
                past_key_values=cache_of(past_key_values),
                use_cache=True,
                output_hidden_states=True,
            )
            log_p_BTV = torch.log_softmax(out.logits[:, :-1], -1)
            of_next_BT = log_p_BTV.gather(2, input_ids[:, 1:, None])[:, :, 0]
            last_B = (attention_mask * torch.arange(1, num_new + 1)).argmax(1)
            logits_BV = out.logits.gather(1, last_B[:, None, None].expand(-1, 1, out.logits.shape[2]))[:, 0]
            return (
                -(of_next_BT * counted[:, 1:]).sum(1),
                counted[:, 1:].sum(1),
                logits_BV.argmax(1),
                _text.pooled(out.hidden_states[-1], attention_mask),
                logits_BV,
                *kept_in(out.past_key_values),
            )

    return DecoderWithCache()
