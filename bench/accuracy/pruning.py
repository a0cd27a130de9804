"""What static pruning costs: perplexity and distance from the source at uniform rates, in every way of pruning.

    python bench/accuracy/pruning.py smollm2-135m --text evaluation.txt --calibration calibration.txt --rate 0.05,0.1
    python bench/accuracy/pruning.py smollm2-135m --text evaluation.txt --calibration calibration.txt --plan plan.json

Nothing is quantised: models are f32 NumPy (evaluation/float_model.py). `weights left` are those of the layers that are
not zero. KL is from the source, ± its standard error over windows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from spqt_ti.benchmark.provenance import provenance
from spqt_ti.cli.options import levels
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.convert.prune import MODES, Pruner, pruned_checkpoint
from spqt_ti.convert.quantize import open_source
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import Scores, compare, mean_and_error, windows
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.windows import text_windows
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.tables import GrowingTable, print_notes
from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text, sha256

TITLES = ("rates", "pruned", "weights left", "perplexity", "KL from the source", "same top 1")


def float_model(checkpoint: Checkpoint) -> tuple[FloatModel, float]:
    """The model, and how many weights of its layers are not zero."""
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    matrices = [w for name, w in weights.items() if ".layers." in name and w.ndim == 2]
    return FloatModel(checkpoint.config, weights), float(sum(np.count_nonzero(w) for w in matrices))


def line(rates: str, mode: str, left: float, score: Scores) -> list[str]:
    """A row of the table."""
    row, (kl, error) = score.row(0.0), mean_and_error(score.kl)
    return [
        rates, mode, f"{left:.1%}", f"{row.perplexity:.2f} ± {row.perplexity_se:.2f}", f"{kl:.4f} ± {error:.4f}",
        f"{row.top1:.1%}",
    ]  # fmt: skip


def main() -> None:
    """Prune, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--text", required=True, help="to evaluate on")
    parser.add_argument("--calibration", required=True, help="text that importance is taken from")
    parser.add_argument("--rate", type=levels, default=[], metavar="R[,R...]", help="of all layers")
    parser.add_argument("--plan", action="append", default=[], help="of spqt allocate; may be repeated")
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated (default: all)")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration-windows", type=int, default=8)
    arguments = parser.parse_args()
    text, calibration = read_text(arguments.text), read_text(arguments.calibration)
    said = {"text_sha256": sha256(calibration), "paragraphs": paragraph_hashes(calibration)}
    check_disjoint(text, said, "channels were chosen with")
    checkpoint = open_source(arguments.model)
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    parts = windows(tokenizer.encode(text), arguments.context, arguments.windows, tokenizer.bos)
    seen = text_windows(
        tokenizer.encode(calibration), arguments.context, arguments.calibration_windows, checkpoint.config.bos_token_id
    )
    layers = checkpoint.config.num_hidden_layers
    plans = {f"{rate:g}": PruningPlan((rate,) * layers) for rate in arguments.rate}
    plans |= {Path(path).name: PruningPlan.load(path) for path in arguments.plan}
    source, whole = float_model(checkpoint)
    of_source = {tuple(part): source.second_half(part) for part in parts}
    with GrowingTable(TITLES) as table:
        for rates, plan in plans.items():
            check_disjoint(text, plan.details.get("calibration", {}), "the plan was measured on")
            plan.check(plan.source_sha256, layers)
            for mode in arguments.mode or MODES:
                pruned, left = float_model(pruned_checkpoint(checkpoint, Pruner(checkpoint, plan.rates, seen, mode)))
                (score,) = compare(parts, lambda window: of_source[tuple(window)], [pruned.second_half])
                table.add(line(rates, mode, left / whole, score))
    print_notes(f"{arguments.windows} windows of {arguments.context} of {Path(arguments.text).name}", provenance(None))


if __name__ == "__main__":
    main()
