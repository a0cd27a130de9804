"""`spqt info`: what a model is made of, quantised or not; what a policy says."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options, policies
from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.cli.workers import workers_of
from spqt_ti.paths import expanded
from spqt_ti.tables import wrapped

if TYPE_CHECKING:
    from spqt_ti.container import Container
    from spqt_ti.model.config import ModelConfig
    from spqt_ti.model.dispatch import Choice
    from spqt_ti.model.sites import Site
    from spqt_ti.sources.checkpoint import Checkpoint

_ROW_LAYOUT = "row layout: every input is read, and those to be skipped count as zero"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "info",
        help="show what a model or a policy is made of",
        description="Of a policy (a .json file): method, level, what it was made from and, for neuron predictors, "
        "recall and density of every layer. Of a model: architecture, sizes and, of a quantised one, format, bytes "
        "read per token, and which matrices run sparse. A known name, directory or file that was used before is "
        "followed to its quantised copy.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--verify", action="store_true", help="also check the SHA-256 of every file of a quantised model"
    )
    parser.add_argument(
        "--sparsity", type=options.level, default=0.5, metavar="S",
        help="level for which to say which matrices run sparse (default: %(default)s)",
    )  # fmt: skip
    options.add_threads(parser)
    options.add_backend(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Describe a container, a source model's in the cache, or a source model that has none yet."""
    with held_back():
        from spqt_ti.container import MANIFEST, Container
        from spqt_ti.convert.identity import cached_copy
        from spqt_ti.sources import registry
        from spqt_ti.sources.open import open_checkpoint
    given = expanded(arguments.model)
    if given.suffix == ".json" and given.is_file():
        policies.show(given, arguments.json)
        return
    source = None if (given / MANIFEST).is_file() else registry.resolve(arguments.model)
    directory = given if source is None else cached_copy(source)
    if (directory / MANIFEST).is_file():
        container = Container.open(directory, verify=arguments.verify)
        report = describe_container(container)
        if source is not None:
            report["copy_of"] = str(source)
        report |= describe_decoding(container, arguments.sparsity, arguments.backend, arguments.threads)
    else:
        assert source is not None
        report = describe_source(open_checkpoint(source))
    if arguments.json:
        print_json(report)
    else:
        _print_report(report)


def describe_container(container: Container) -> dict[str, Any]:
    """Facts about a quantised model, ready for JSON.

    `bytes_per_weight` is that of the layers' matrices.
    """
    matrices = [{**matrix.to_dict(), "bytes": matrix.nbytes} for matrix in container.matrices.values()]
    layers = container.layer_matrices()
    return {
        **_describe_model(container.path, container.config),
        "kind": "quantised",
        "bytes": sum(container.read(name).nbytes for name in container.names()),
        "version": container.version,
        "storage": container.storage(),
        "summary": container.summary(),
        "source": container.source.name,
        "source_sha256": container.source.sha256,
        "transformations": [dict(one) for one in container.transformations],
        "fingerprint": container.fingerprint,
        "chat_template": container.chat_template is not None,
        "bytes_per_weight": sum(m.nbytes for m in layers) / sum(m.rows * m.cols for m in layers),
        "matrices": matrices,
    }


def describe_decoding(
    container: Container, sparsity: float, backend: str | None, threads: int | None
) -> dict[str, Any]:  # fmt: skip
    """How a model decodes on a backend (see `backend.requested`), on the CPU with so many threads, ready for
    JSON. `dense_bytes_per_token`: bytes of weights that a token reads when no input is skipped, padding included;
    `decode`: how each matrix runs at this level, and why. Raises BackendError where the backend is not there.
    """
    from spqt_ti.backend import look_up
    from spqt_ti.model.dispatch import choose
    from spqt_ti.model.engines import engine_for
    from spqt_ti.model.sites import Site, inputs_per_layer
    from spqt_ti.model.tuning import Tuning

    runtime, config = look_up(backend), container.config
    workers, kind = workers_of(runtime, threads), engine_for(runtime.capabilities)
    choices = choose(config, Tuning.load(runtime.name), workers, kind)
    traffic = kind.traffic(config, container.matrices)
    decode = {
        "sparsity": sparsity,
        "backend": runtime.backend,
        "device": runtime.device,
        "threads": workers,
        "division": kind.division_title,
        "matrices": [how for site in Site for how in _ways(container, site, choices[site.label], sparsity)],
    }
    return {"dense_bytes_per_token": traffic.bytes_per_token(inputs_per_layer(config)), "decode": decode}


def _ways(container: Container, site: Site, choice: Choice, sparsity: float) -> Iterator[dict[str, Any]]:
    """How the matrices of a site run: once for the layers in rows, once for those in zigzag."""
    in_rows = [container.matrix(layer, site).layout == "row" for layer in range(container.config.num_hidden_layers)]
    for rows in sorted(set(in_rows)):
        layers = [layer for layer, row in enumerate(in_rows) if row == rows]
        sparse, reason = (False, _ROW_LAYOUT) if rows else (choice.runs_sparse(sparsity), choice.reason(sparsity))
        yield {**dataclasses.asdict(choice), "layers": layers, "sparse": sparse, "reason": reason}


def describe_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a model that is not quantised yet, ready for JSON."""
    path = checkpoint.source
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {
        **_describe_model(path, checkpoint.config),
        "kind": "Hugging Face directory" if path.is_dir() else "GGUF file",
        "bytes": sum(file.stat().st_size for file in files),
        "chat_template": checkpoint.chat_template is not None,
    }


def _describe_model(path: Path, config: ModelConfig) -> dict[str, Any]:
    fields = config.to_dict()
    return {
        "path": str(path),
        "architecture": fields["architectures"][0],
        "parameters": sum(math.prod(shape) for shape in config.tensor_shapes().values()),
        "config": fields,
    }


def _print_report(report: dict[str, Any]) -> None:
    config = report["config"]
    head = "tied to the embedding" if config["tie_word_embeddings"] else "its own"
    lines = [
        ("path", report["path"]),
        *([("made from", report["copy_of"])] if "copy_of" in report else []),
        ("kind", report["kind"] if "matrices" in report else f"{report['kind']}, not quantised yet"),
        ("architecture", report["architecture"]),
        ("parameters", f"{report['parameters']:,}"),
        *((name, f"{config[name]:,}") for name in _SIZES),
        ("head", head),
        ("chat template", "yes" if report["chat_template"] else "no"),
        ("size", megabytes(report["bytes"])),
    ]
    if "matrices" in report:
        lines += [
            ("format", report["version"]),
            ("scheme, layout", report["summary"]),
            ("source", report["source"]),
            ("source SHA-256", report["source_sha256"] or "not recorded (format 1)"),
            ("transformations", ", ".join(one["kind"] for one in report["transformations"]) or "none"),
            ("fingerprint", report["fingerprint"]),
            (
                "bytes per weight",
                f"{report['bytes_per_weight']:.4f} (matrices of the layers; {8 * report['bytes_per_weight']:.2f} bits)",
            ),
        ]
    if "decode" in report:
        lines.append(("read per token", f"{megabytes(report['dense_bytes_per_token'])} of weights when dense"))
    for name, value in lines:
        print(f"{name:24}{value}")
    if "matrices" in report:
        _print_matrices(report["matrices"])
    if "decode" in report:
        decode = report["decode"]
        workers = f" with {decode['threads']} threads" if decode["threads"] else ""
        where = f"{decode['backend']} ({decode['device']}){workers}"
        print(wrapped(f"decoding at {decode['sparsity']:.0%} sparsity on {where}:", "  "))
        for sites, how in _alike(decode, report["config"]["num_hidden_layers"]):
            print(wrapped(f"  {', '.join(sites)}: {how}", "    "))


def _alike(decode: dict[str, Any], layers: int) -> list[tuple[list[str], str]]:
    """Sites that run alike, with their layers where those are not all, and how."""
    found: dict[str, list[str]] = {}
    for matrix in decode["matrices"]:
        division = f" ({decode['division']} {matrix['division']})" if matrix["division"] else ""
        how = f"{'sparse' if matrix['sparse'] else 'dense'}{division}: {matrix['reason']}"
        which = "" if len(matrix["layers"]) == layers else f" of {_ranges(matrix['layers'])}"
        found.setdefault(how, []).append(matrix["site"] + which)
    return [(sites, how) for how, sites in found.items()]


def _print_matrices(matrices: list[dict[str, Any]]) -> None:
    """The layers' matrices, those that are alike in one line, then those of the vocabulary."""
    layers: dict[str, list[int]] = {}
    for matrix in matrices:
        found = _LAYER.fullmatch(matrix["name"])
        name = found[2] if found else matrix["name"]
        several = len(matrix["parts"]) > 1
        parts = f"\n    = {' + '.join(f'{part} {rows}' for part, rows in matrix['parts'].items())}" if several else ""
        shape = f"[{matrix['rows']}, {matrix['cols']}]"
        line = f"  {name:22}{shape:16}{matrix['scheme']:5} {matrix['layout']:7}{matrix['bytes']:>12,} bytes{parts}"
        layers.setdefault(line, []).extend([int(found[1])] if found else [])
    groups: dict[tuple[int, ...], list[str]] = {}
    for line, numbers in layers.items():
        groups.setdefault(tuple(numbers), []).append(line)
    for which, lines in groups.items():
        print(f"matrices of {_ranges(which)}:" if which else "matrices of the vocabulary:")
        print(*lines, sep="\n")


def _ranges(layers: Sequence[int]) -> str:
    """Layers in a few words: "layers 0-3, 7"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {words}"
