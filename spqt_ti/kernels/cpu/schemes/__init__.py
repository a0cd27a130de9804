"""How the CPU's kernels read each weight scheme: a module each, of the scheme's name, with its DECODER."""

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.scheme_modules import find_part, schemes_in

__all__ = ["Decoder", "decoder_of"]


def decoder_of(scheme: Scheme) -> Decoder:
    """The decoder of a scheme. QuantizationError names those that there are."""
    decoder: Decoder | None = find_part(__name__, scheme.name, "DECODER")
    if decoder is None:
        there_are = ", ".join(schemes_in(__name__))
        raise QuantizationError(f"the CPU has no kernels for {scheme.label}; it has them for: {there_are}")
    return decoder
