#!/usr/bin/env python3
"""Writes small models of random weights and what mlx-lm computes with them: `random_models.py fixtures/random_models`.

Each folder has `config.json` and `model.safetensors` in MLX's layout, and `expected.json`: the ids of a prompt, its last
logits, the logsumexp at each position, 16 greedy tokens, read one by one after the prompt, and the loss of predicting
the prompt with the norm of each gradient.
"""

import importlib
import json
import pathlib
import sys

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 80, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4, "full_attention_interval": 2, "partial_rotary_factor": 0.5,
    "shared_expert_intermediate_size": 24,
}
OLMO = {
    **SIZES, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "linear_allow_neg_eigval": True, "attention_bias": False,
}
MODELS = {
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen3_moe": {"model_type": "qwen3_moe", **SIZES, **EXPERTS},
    "qwen3_moe-some-layers-dense": {
        "model_type": "qwen3_moe", **SIZES, **EXPERTS, "num_hidden_layers": 4, "norm_topk_prob": False,
        "decoder_sparse_step": 2, "mlp_only_layers": [1],
    },
    "qwen3-dynamic-rope": {
        "model_type": "qwen3", **SIZES, "max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 4.0},
    },
    "olmo_hybrid": {**OLMO, "model_type": "olmo_hybrid"},
    "olmo_hybrid-no-rope": {
        **OLMO, "model_type": "olmo_hybrid", "rope_theta": None, "linear_allow_neg_eigval": False, "attention_bias": True,
        "tie_word_embeddings": True, "num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "qwen3_next-dense": {"model_type": "qwen3_next", **SIZES, **EXPERTS, **LINEAR, "num_experts": 0},
}


def make(name, config, folder):
    mx.random.seed(7)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    # biases and norms that are not their initial zeros and ones
    model.update(tree_map(lambda x: x + 0.1 * mx.random.normal(x.shape), model.parameters()))
    mx.eval(model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = [(37 * i * i + 11 * i + 5) % config["vocab_size"] for i in range(40)]
    cache = make_prompt_cache(model)
    logits = model(mx.array([ids]), cache=cache)[0]
    tokens = []
    last = logits[-1]
    for _ in range(16):
        tokens.append(mx.argmax(last).item())
        last = model(mx.array([[tokens[-1]]]), cache=cache)[0, -1]
    batch = mx.array([ids])
    model.train()

    def loss(parameters):
        model.update(parameters)
        return mx.mean(nn.losses.cross_entropy(model(batch[:, :-1]), batch[:, 1:]))

    loss, gradients = mx.value_and_grad(loss)(model.trainable_parameters())
    expected = {
        "ids": ids,
        "last_logits": logits[-1].tolist(),
        "logsumexp": mx.logsumexp(logits, axis=-1).tolist(),
        "greedy": tokens,
        "loss": loss.item(),
        "gradient_norms": {name: mx.linalg.norm(g.flatten()).item() for name, g in tree_flatten(gradients)},
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, tokens)


for name, config in MODELS.items():
    make(name, config, pathlib.Path(sys.argv[1]) / name)
