"""Stream a text at 40 % sparsity, then what it cost.

    python examples/stream.py [MODEL] [PROMPT]

MODEL is a known name, a Hugging Face directory, a .gguf file or a quantised directory.
"""

import sys

import spqt_ti


def main(name: str = "smollm2-135m", prompt: str = "Once upon a time") -> None:
    model = spqt_ti.load(name, sparsity=0.4)
    print(prompt, end="")
    for piece in model.stream(prompt, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=1):
        print(piece, end="", flush=True)

    # The last piece says why the text ended and what it cost.
    stats = piece.stats
    print(f"\n\nended by {piece.finish_reason!r}; {stats.decode_tokens_per_second:.0f} tokens/s,")
    print(f"{stats.realised_sparsity:.0%} of the weights skipped, {stats.bytes_per_token / 1e6:.1f} MB read per token")
    for site, share in stats.inputs_skipped.items():
        print(f"  {site:8} {share:4.0%} of the inputs skipped")


if __name__ == "__main__":
    main(*sys.argv[1:])
