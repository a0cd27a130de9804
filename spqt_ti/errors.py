"""Errors that a user can act on: the command line prints them as one line, without a traceback."""

_LONGEST = 2000  # characters of a message


class SpqtError(Exception):
    """Base of every error that spqt_ti raises on purpose. The message says what was wrong, where, and what to do.

    Messages name what is in files, which may be of any length; the middle of a very long one is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 3 :]}"


class BackendError(SpqtError):
    """The asked-for backend or runtime setting cannot be had on this machine."""


class CacheError(SpqtError, OSError):
    """There is no place for the cache folder. An OSError too: who can do without it does so for any of them."""


class CheckpointError(SpqtError):
    """A source model (Hugging Face directory, GGUF file, known name) is missing, damaged or not supported."""


class ContainerError(SpqtError):
    """A quantised model directory is missing, damaged, of another version, or cannot be written."""


class QuantizationError(SpqtError):
    """A tensor cannot be quantised: NaN, infinity or a shape that the scheme does not take."""


class OperandError(SpqtError, ValueError):
    """An operand of `spqt_ti.ops` does not fit: another shape or dtype than the matrix takes, NaN, a bad threshold."""


class PolicyError(SpqtError):
    """A sparsity policy is malformed or belongs to another model."""


class TuningError(SpqtError):
    """What `spqt tune` kept is malformed or cannot be written, or its command line makes no sense."""


class GenerationError(SpqtError):
    """A request cannot be served: empty prompt, more tokens than the context holds, unknown token id."""


class AllocationError(SpqtError):
    """A budget cannot be shared out as asked: nothing keeps the limit, rates out of bounds, a plan of another model."""


class ExecutionError(SpqtError):
    """Evaluations cannot be run: no cluster answers, workers die or lack the model, results are of another sweep."""


class ServerError(SpqtError):
    """A server cannot be started as asked: the extra is missing, the address is taken, a limit makes no sense."""
