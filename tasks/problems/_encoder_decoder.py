"""An encoder and a decoder as one graph: it reads a text once, and writes another with what it remembers of both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ParamsError, did_you_mean
from tasks.problems import _text
from tasks.problems._decoder import EMPTY_PLACES, KEPT, cache_of, kept_in

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from tasks.params import Scratch

# Architectures which learn from labels behind the start that they are told.
_FROM_SCRATCH = ("bart", "marian", "pegasus")

# Stands for the token with which a decoder begins, which is another one in each architecture; the graph puts it in.
START = -1


def beginning(base: "Scratch") -> dict[str, Any]:
    """How Marian begins, and then its kin as well: with the token for padding.

    Raises ParamsError for another architecture.
    """
    if base.architecture not in _FROM_SCRATCH:
        raise ParamsError(
            f"base.architecture is {base.architecture!r}, which is no encoder-decoder that is built from scratch here."
            f"{did_you_mean(base.architecture, _FROM_SCRATCH)} Known: {', '.join(_FROM_SCRATCH)}."
        )
    begins = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None, "forced_eos_token_id": None}
    return {**begins, "scale_embedding": True}


def nothing_read(model: "PreTrainedModel", num_rows: int, num_places: int = EMPTY_PLACES) -> dict[str, NDArray[Any]]:
    """What the graph remembers at the beginning of a text, with so many places that hold nothing, all zeros.

    The keys and values of each layer (B, H, P, D) are of what was written, then of what was read, and
    `past_memory_mask` (B, P) says which of the places of what was read hold something.
    """
    config = model.config
    layers = getattr(config, "decoder_layers", None) or config.num_decoder_layers
    heads = getattr(config, "decoder_attention_heads", None) or config.num_heads
    width = getattr(config, "d_kv", None) or config.d_model // heads
    nothing = np.zeros((num_rows, heads, num_places, width), np.float32)
    names = [
        f"{KEPT}{layer}.{half}.{part}"
        for half in ("decoder", "encoder")
        for layer in range(layers)
        for part in ("key", "value")
    ]
    return {**dict.fromkeys(names, nothing), "past_memory_mask": np.zeros((num_rows, num_places), np.int64)}


def encoder_decoder_with_cache(model: "PreTrainedModel") -> "nn.Module":
    """A module from tokens to read, tokens that were written, and a cache, to how likely those are and what may follow.

    `nll` (B) sums -log p over the `num_tokens` (B) written tokens behind the first. `choices` (B) is a number that two
    models have in common where each would choose the same token as the other at each of these places.
    `pooled_embedding` (BD) is of what was read. `logits` (BV) are for what follows on the last token. Then come the
    keys and values as they are now, new ones behind those that were given. Whoever goes on writing gives no tokens to
    read, and the encoder has nothing to do.
    """
    import torch
    from transformers.cache_utils import EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    start = model.config.decoder_start_token_id

    class EncoderDecoderWithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: "Tensor",
            attention_mask: "Tensor",
            written: "Tensor",
            written_mask: "Tensor",
            past_key_values: "Sequence[Tensor] | None" = None,
            past_memory_mask: "Tensor | None" = None,
        ) -> tuple["Tensor", ...]:
            if past_key_values is None or past_memory_mask is None:
                nothing = nothing_read(model, len(input_ids), 0)
                *past_key_values, past_memory_mask = map(torch.from_numpy, nothing.values())
            lowest = torch.finfo(torch.float32).min
            half = len(past_key_values) // 2
            of_written, of_read = past_key_values[:half], past_key_values[half:]
            num_past, num_new = of_written[0].shape[2], written.shape[1]
            hidden_BSD = self.model.get_encoder()(
                input_ids=input_ids, attention_mask=torch.where(attention_mask[:, None, None] > 0, 0.0, lowest)
            ).last_hidden_state
            memory_mask_BM = torch.cat([past_memory_mask, attention_mask], 1)
            is_before_TK = torch.arange(num_past + num_new)[None] <= torch.arange(num_new)[:, None] + num_past
            cache = EncoderDecoderCache(cache_of(of_written), cache_of(of_read))
            # What has just been read comes behind what was, rather than being thought to be in the cache already.
            cache.is_updated = dict.fromkeys(cache.is_updated, False)
            logits_BTV = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden_BSD),
                attention_mask=torch.where(memory_mask_BM[:, None, None] > 0, 0.0, lowest),
                decoder_input_ids=torch.where(written < 0, start, written),
                decoder_attention_mask=torch.where(is_before_TK, 0.0, lowest).expand(written.shape[0], 1, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            counted_BT = written_mask[:, 1:]
            log_p_BTV = torch.log_softmax(logits_BTV[:, :-1], -1)
            of_next_BT = log_p_BTV.gather(2, written[:, 1:, None].clamp(min=0))[:, :, 0]
            place_T = torch.arange(1, num_new)
            return (
                -(of_next_BT * counted_BT).sum(1),
                counted_BT.sum(1),
                (log_p_BTV.argmax(-1) * place_T[None] * counted_BT).sum(1),
                _text.pooled(hidden_BSD, attention_mask),
                logits_BTV[:, -1],
                *kept_in(cache.self_attention_cache),
                *kept_in(cache.cross_attention_cache),
            )

    return EncoderDecoderWithCache()
