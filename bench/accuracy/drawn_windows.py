"""Draws the calibration windows that come with the package for a known model (spqt_ti/convert/stored_windows.py).

python bench/accuracy/drawn_windows.py smollm2-135m spqt_ti/data/windows/smollm2-135m.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from spqt_ti.api import open_quantized
from spqt_ti.container import Source
from spqt_ti.convert.identity import files_of
from spqt_ti.convert.quantize import open_source
from spqt_ti.convert.stored_windows import SEED
from spqt_ti.generation.windows import sampled_windows
from spqt_ti.model.runner import Llama
from spqt_ti.quantization import DEFAULT_TOKENS, WINDOW


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("file", type=Path, metavar="FILE.npz")
    arguments = parser.parse_args()
    checkpoint = open_source(arguments.model)
    llama = Llama(open_quantized(checkpoint.source, "cpu"), backend_name="cpu", context=WINDOW)
    windows = sampled_windows(llama, WINDOW, DEFAULT_TOKENS // WINDOW, checkpoint.config.bos_token_id, SEED)
    source = Source(arguments.model, files_of(checkpoint.source)).sha256
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.file, tokens=np.array(windows, np.uint16), source=np.array(source))


if __name__ == "__main__":
    main()
