"""A quantised model on disk: a directory that is either whole and verified or not there at all (docs/format.md)."""

from spqt_ti.container.manifest import FORMAT_VERSION, MANIFEST, Source
from spqt_ti.container.matrices import CLASSES, ExtraTensor, MatrixInfo, Storage, plan_matrices
from spqt_ti.container.reader import Container
from spqt_ti.container.writer import ContainerWriter, check_destination

__all__ = [
    "CLASSES",
    "FORMAT_VERSION",
    "MANIFEST",
    "Container",
    "ContainerWriter",
    "ExtraTensor",
    "MatrixInfo",
    "Source",
    "Storage",
    "check_destination",
    "plan_matrices",
]
