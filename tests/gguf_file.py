"""A small Llama with its tokenizer as one GGUF file, as llama.cpp's own converter lays it out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Any, tokenizer: Tokenizer, path: Path) -> None:
    """`model` is transformers' LlamaForCausalLM, its output tied to its input; `tokenizer` a byte-level BPE."""
    from gguf import GGUFWriter

    config, learned = model.config, json.loads(tokenizer.to_str())["model"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("[") and token.endswith("]") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in learned["merges"]])
    writer.add_bos_token_id(learned["vocab"]["[CLS]"])
    writer.add_eos_token_id(learned["vocab"]["[SEP]"])
    writer.add_pad_token_id(learned["vocab"]["[PAD]"])
    writer.add_unk_token_id(learned["vocab"]["[UNK]"])
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weights.numpy()
        for part in ("q_proj", "k_proj"):
            if part in name:  # its rotary halves stand side by side
                heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
                halves = array.reshape(heads, 2, -1, array.shape[1])
                array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        writer.add_tensor(_renamed(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{_PARTS[part]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
