"""What a config.json may leave out: Hugging Face's config class of its `model_type` fills it in.

Published configs of Gemma 3 leave out the number of heads, say. The values are those of transformers 5.19,
which vLLM 0.32.0 reads configs with; layers and widths, which no config leaves out, are required here.
"""

from __future__ import annotations

_LENGTHS = {
    "llama": 2048,
    "mistral": 131072,
    "qwen2": 32768,
    "qwen3": 32768,
    "phi3": 4096,
    "mixtral": 131072,
    "qwen3_moe": 32768,
    "gemma2": 8192,
    "gemma3_text": 131072,
    "gpt_oss": 131072,
    "llama4_text": 131072,
    "deepseek_v2": 2048,
    "deepseek_v3": 4096,
    "jamba": 262144,
    "qwen3_next": 32768,
    "mllama_text_model": 131072,
}
_KV_HEADS = {
    "mistral": 8,
    "mixtral": 8,
    "qwen3_moe": 4,
    "gemma2": 4,
    "gemma3_text": 4,
    "gpt_oss": 8,
    "llama4_text": 8,
    "jamba": 8,
    "qwen3_next": 2,
    "mllama_text_model": 8,
}
_MORE = {
    "mistral": {"sliding_window": 4096},
    "gemma3_text": {"num_attention_heads": 8, "head_dim": 256, "vocab_size": 262208},
}
#: `model_type` of a whole model, where its text model has one of its own.
_TEXT = {"gemma3": "gemma3_text", "llama4": "llama4_text", "mllama": "mllama_text_model"}


def class_defaults(model_type: str) -> dict[str, int]:
    """Keys that a config of this type may leave out, with what they are then; empty for an unknown type."""
    name = _TEXT.get(model_type, model_type)
    out = dict(_MORE.get(name, {}))
    if name in _KV_HEADS:
        out["num_key_value_heads"] = _KV_HEADS[name]
    if name in _LENGTHS:
        out["max_position_embeddings"] = _LENGTHS[name]
    return out


__all__ = ["class_defaults"]
