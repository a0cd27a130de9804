"""transformers' models of containers, in float64: an implementation that is not ours.

What transformers does not have is patched into the nearest that it has: BambooMLP as its documentation gives it
(`down(act(gate x) * act(up x))`), and FATReLU (arXiv 2402.13516).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models

from spqt_ti.container import Container

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[oracle]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[oracle]'")

_NEAREST = {"bamboo": "mistral", "sparsellama": "llama", "minicpm": "granite"}


def of_container(container: Container) -> Any:
    """The model with the container's dequantised weights."""
    fields, config = container.config.to_dict(), container.config
    fields |= {"pad_token_id": None, "model_type": _NEAREST.get(config.model_type, config.model_type)}
    if config.hidden_act == "fatrelu":
        fields |= {"hidden_act": "relu"}
    if config.model_type == "minicpm":  # as its own code computes: the same places, other names
        depth, base = (dict(config.multipliers)[name] for name in ("scale_depth", "dim_model_base"))
        fields |= {
            "embedding_multiplier": dict(config.multipliers)["scale_emb"],
            "residual_multiplier": depth / config.num_hidden_layers**0.5,
            "logits_scaling": config.hidden_size / base,
            "attention_multiplier": config.head_dim**-0.5,
        }
    settings = transformers.AutoConfig.for_model(**fields, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(settings).to(torch.float64).eval()
    for layer in model.model.layers:
        if config.hidden_act == "fatrelu":
            layer.mlp.act_fn = torch.nn.Threshold(config.hidden_act_param, 0.0)
        if config.architecture.activates_up:
            layer.mlp.up_proj.register_forward_hook(lambda _, inputs, up, mlp=layer.mlp: mlp.act_fn(up))
    state = {name: torch.from_numpy(values.astype(np.float64)) for name, values in container.weights()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if config.architecture.fused:
        state = {
            name: torch.from_numpy(w)
            for name, w in tiny_models.fused(config, {n: w.numpy() for n, w in state.items()}).items()
        }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return model
