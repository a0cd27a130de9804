"""Decoders of the weight schemes for groups of threads: a module each, of the scheme's name, with its DECODER."""

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.scheme_modules import find_part, schemes_in
from spqt_ti.kernels.simt.schemes.decoder import Decoder

__all__ = ["Decoder", "decoder_of"]


def decoder_of(scheme: Scheme) -> Decoder:
    """The decoder of a scheme. QuantizationError where GPUs have none."""
    decoder: Decoder | None = find_part(__name__, scheme.name, "DECODER")
    if decoder is None:
        there_are = ", ".join(schemes_in(__name__))
        raise QuantizationError(f"{scheme.label} weights have no GPU kernels; quantise with one of: {there_are}")
    return decoder
