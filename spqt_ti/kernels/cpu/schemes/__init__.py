"""How the CPU's kernels read each weight scheme. A new one is a file here and a row in the table."""

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu.schemes import q4_k, q6_k, q8_0
from spqt_ti.kernels.cpu.schemes.decoder import Decoder

DECODERS: dict[str, Decoder] = {decoder.scheme.name: decoder for decoder in (q4_k.DECODER, q6_k.DECODER, q8_0.DECODER)}


def decoder_of(scheme: Scheme) -> Decoder:
    """The decoder of a scheme. QuantizationError names those that there are."""
    if scheme.name not in DECODERS:
        raise QuantizationError(f"the CPU has no kernels for {scheme.label}; it has them for: {', '.join(DECODERS)}")
    return DECODERS[scheme.name]
