"""Write a Llama of random weights as a GGUF file in Q4_K (embedding in Q8_0), to measure sizes that no package ships.

    python bench/random_llama.py random-1b.gguf        # hidden 2048, FFN 8192, 16 layers, 32 heads, 8 KV heads, tied

Weights are normal with standard deviation 1 / sqrt(inputs), so that activations stay of order one. The vocabulary is
SentencePiece's byte tokens and filler.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.backend import start
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.kernels.pack.quantize import quantize_matrix


def q4_k_rows(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """A random matrix as ggml stores it: u8 [rows, bytes per row]."""
    values = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(np.sqrt(cols))
    return quantize_matrix(values, "row", q4_k.SCHEME).reshape(rows, -1)


def add_tensors(writer: gguf.GGUFWriter, sizes: argparse.Namespace) -> Iterator[str]:
    """Add every tensor; yields its name."""
    rng = np.random.default_rng(sizes.seed)
    head_dim = sizes.hidden // sizes.heads
    embedding = rng.standard_normal((sizes.vocabulary, sizes.hidden), dtype=np.float32)
    writer.add_tensor(
        "token_embd.weight",
        q8_0.quantize(embedding.reshape(-1, 32)).reshape(sizes.vocabulary, -1),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    yield "token_embd.weight"
    writer.add_tensor("output_norm.weight", np.ones(sizes.hidden, np.float32))
    matrices = {
        "attn_q": (sizes.hidden, sizes.hidden),
        "attn_k": (sizes.kv_heads * head_dim, sizes.hidden),
        "attn_v": (sizes.kv_heads * head_dim, sizes.hidden),
        "attn_output": (sizes.hidden, sizes.hidden),
        "ffn_gate": (sizes.intermediate, sizes.hidden),
        "ffn_up": (sizes.intermediate, sizes.hidden),
        "ffn_down": (sizes.hidden, sizes.intermediate),
    }
    drawn: list[dict[str, np.ndarray]] = []
    for layer in range(sizes.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(sizes.hidden, np.float32))
        if not sizes.drawn_layers or layer < sizes.drawn_layers:
            data = {name: q4_k_rows(rng, *shape) for name, shape in matrices.items()}
            drawn += [data] * bool(sizes.drawn_layers)
        else:
            data = drawn[layer % sizes.drawn_layers]
        for name, rows in data.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
        yield f"blk.{layer}"


def add_metadata(writer: gguf.GGUFWriter, sizes: argparse.Namespace) -> None:
    """Sizes, and a vocabulary of three special tokens, 256 bytes and filler."""
    writer.add_context_length(4096)
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(sizes.hidden // sizes.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(sizes.vocabulary)
    filler = sizes.vocabulary - 259
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + [f"▁w{i}" for i in range(filler)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(filler)])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * filler])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def main() -> None:
    """Parse sizes, write the file under a temporary name, rename it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    defaults = {"hidden": 2048, "intermediate": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "vocabulary": 32000}
    for name, default in {**defaults, "seed": 0}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--drawn-layers", type=int, help="that differ; later ones repeat them (default: all differ)")
    sizes = parser.parse_args()
    if sizes.hidden % 256 or sizes.intermediate % 256 or sizes.vocabulary < 300:
        parser.error("Q4_K rows need sizes that are multiples of 256, and the vocabulary 300 tokens or more")
    start("cpu")
    with written_whole(sizes.path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama", use_temp_file=True)
        add_metadata(writer, sizes)
        for name in add_tensors(writer, sizes):
            print(name, flush=True)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
