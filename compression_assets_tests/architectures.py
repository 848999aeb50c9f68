"""Tiny configs of many architectures that transformers knows. No test in here."""

from typing import Any

import transformers
from transformers import PretrainedConfig

IDS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}
USUAL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
HEADS_OF_16 = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

GATED = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": HEADS_OF_16,
    "Gemma": {**HEADS_OF_16, "tie_word_embeddings": True},
    "Gemma3Text": {**HEADS_OF_16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "Olmo2": {},
    "StableLm": {},
    "SmolLM3": {},
    "Phi3": {},
    "Glm4": HEADS_OF_16,
    "DeepseekV2": {
        **{"first_k_dense_replace": 2, "q_lora_rank": None, "kv_lora_rank": 64, "num_key_value_heads": 4},
        **{"qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 16},
    },
}
PLAIN = {
    "GPTNeoX": {},
    "Starcoder2": {},
    "Phi": {},
    "Nemotron": {},
    "OPT": {
        **{"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"max_position_embeddings": 128, "word_embed_proj_dim": 64},
    },
}
NO_LINEAR_LAYERS = {
    "GPT2": GPT,
    "Falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
WIDTH_OUT_OF_CODE = {"Bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4}}
OTHER_LOGITS = {
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.3},
    "Gemma2": {**HEADS_OF_16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
}
WITH_EXPERTS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "Qwen3Moe": {**EXPERTS, **HEADS_OF_16},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, **HEADS_OF_16},
}
ALL = GATED | PLAIN | NO_LINEAR_LAYERS | WIDTH_OUT_OF_CODE | OTHER_LOGITS | WITH_EXPERTS
NAMED_OTHERWISE = {"GPT2", "OPT", "Falcon", "Bloom"}
"""Their configs have names of their own for sizes."""


def config_of(name: str, **changes: Any) -> PretrainedConfig:
    sizes = {} if name in NAMED_OTHERWISE else USUAL
    made: PretrainedConfig = getattr(transformers, f"{name}Config")(
        **{**IDS, **sizes, **ALL[name], **changes}
    )
    return made
