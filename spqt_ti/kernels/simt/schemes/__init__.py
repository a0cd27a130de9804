"""Decoders of the weight schemes for groups of threads: a module each, of the scheme's name, with its DECODER."""

import functools
import importlib
import pkgutil
from pathlib import Path

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.simt.schemes.decoder import Decoder

__all__ = ["Decoder", "decoder_of"]


@functools.cache
def decoder_of(scheme: Scheme) -> Decoder:
    """The decoder of a scheme. QuantizationError where GPUs have none."""
    names = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {"decoder"}
    if scheme.name not in names:
        raise QuantizationError(
            f"{scheme.label} weights have no GPU kernels; quantise with one of: {', '.join(sorted(names))}"
        )
    decoder: Decoder = importlib.import_module(f"{__name__}.{scheme.name}").DECODER
    return decoder
