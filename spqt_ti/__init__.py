"""spqt_ti: Llama models in zigzag Q4_K that skip the weights of inactive inputs while decoding."""
