"""The four places of a block where inputs are collected, in the order in which a token meets them."""

SITES = ("qkv", "o", "gate_up", "down")

# Site -> the (stacked) matrix that reads it, within a block.
MODULES = {
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}
