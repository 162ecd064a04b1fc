"""A decoder as one graph: it reads a text at once, and writes token by token with what it remembers of those before."""

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


def empty_cache(model: "PreTrainedModel", num_rows: int) -> dict[str, NDArray[Any]]:
    """What the graph is traced with: `past` (B, P, L, 2, H, D) and `past_mask` (B, P), all zeros."""
    layers, heads, width = _shape(model)
    return {
        "past": np.zeros((num_rows, EMPTY_PLACES, layers, 2, heads, width), np.float32),
        "past_mask": np.zeros((num_rows, EMPTY_PLACES), np.int64),
    }


def _shape(model: "PreTrainedModel") -> tuple[int, int, int]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def cache_of(places: "Tensor") -> Any:
    """transformers' cache of what stands in these places, (B, P, L, 2, H, D)."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache(
        [
            (places[:, :, layer, 0].transpose(1, 2), places[:, :, layer, 1].transpose(1, 2))
            for layer in range(places.shape[2])
        ]
    )


def places_of(cache: Any, num_known: int) -> "Tensor":
    """What transformers' cache has learned behind the places that were known: (B, T, L, 2, H, D)."""
    import torch

    layers = [
        torch.stack([kept[:, :, num_known:].transpose(1, 2) for kept in (layer.keys, layer.values)], 2)
        for layer in cache.layers
    ]
    return torch.stack(layers, 2)


def decoder_with_cache(model: "PreTrainedModel") -> "nn.Module":
    """A module from tokens and a cache to how likely they are, what may come next, and their part of the cache.

    `nll` (B) sums -log p over the tokens that are counted, of which there are `num_tokens` (B); `next_token` (B) is the
    likeliest after the last one, out of `logits` (BV); `present` (B, T, L, 2, H, D) are the places of the new tokens.
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
            past: "Tensor | None" = None,
            past_mask: "Tensor | None" = None,
        ) -> tuple["Tensor", ...]:
            if past is None or past_mask is None:
                empty = empty_cache(model, input_ids.shape[0])
                past, past_mask = torch.from_numpy(empty["past"]), torch.from_numpy(empty["past_mask"])
            num_new, num_past = input_ids.shape[1], past.shape[1]
            mask_BK = torch.cat([past_mask, attention_mask], 1)
            position_BK = (mask_BK.cumsum(1) - 1).clamp(min=0)
            query_T, key_K = torch.arange(num_new) + num_past, torch.arange(num_past + num_new)
            is_before_TK = key_K[None, :] <= query_T[:, None]
            is_itself_TK = key_K[None, :] == query_T[:, None]  # padding sees itself, or a row of nothing would be NaN
            allowed_BTK = (is_before_TK[None] & (mask_BK[:, None, :] > 0)) | is_itself_TK[None]
            bias_BTK = torch.where(allowed_BTK, 0.0, torch.finfo(past.dtype).min)
            out = self.model(
                input_ids=input_ids,
                attention_mask=bias_BTK[:, None],
                position_ids=position_BK[:, num_past:],
                past_key_values=cache_of(past),
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
                places_of(out.past_key_values, num_past),
            )

    return DecoderWithCache()
