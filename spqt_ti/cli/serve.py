"""`spqt serve`: the model over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import generating, options
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import ServerError
from spqt_ti.texts import read_text

if TYPE_CHECKING:
    from spqt_ti.server.settings import Settings

KEY_VARIABLE = "SPQT_API_KEY"


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "serve",
        help="OpenAI's API and a page to chat on",
        description="Serve a model over HTTP: OpenAI's API under /v1, and at / a page to chat on, with a slider of "
        "sparsity. One request is answered at a time, the others wait in line. Needs the extra `server`.",
    )
    options.add_model(parser)
    where = parser.add_argument_group("address")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: %(default)s)")
    where.add_argument("--port", type=options.count_or_none, default=8080, metavar="N", help="0 takes a free one")
    where.add_argument("--name", metavar="NAME", help="what requests call the model (default: as MODEL)")
    who = parser.add_argument_group("who may ask")
    who.add_argument(
        "--api-key-file", metavar="FILE", help=f"file with the key that requests must carry (default: ${KEY_VARIABLE})"
    )
    who.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="name of this machine that clients use, beside localhost and addresses; may be repeated",
    )  # fmt: skip
    who.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="other web pages that may ask, as http://HOST:PORT; may be repeated",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    limits.add_argument("--queue", type=options.count, default=32, metavar="N", help="requests that may wait")
    limits.add_argument("--max-tokens", type=options.count, default=4096, metavar="N", help="of an answer")
    limits.add_argument("--max-seconds", type=float, default=600.0, metavar="S", help="of a request on the engine")
    limits.add_argument("--max-body", type=options.count, default=4 << 20, metavar="BYTES", help="of a request")
    parser.add_argument(
        "--pooling", default="mean", choices=("mean", "last"),
        help="embeddings: of all tokens' states, or of the last one's (default: %(default)s)",
    )  # fmt: skip
    generating.add_sparsity(parser)
    parser.add_argument(
        "--offer", action="append", default=[], metavar="NAME=FILE",
        help="a policy file that requests and the page may choose by name; may be repeated",
    )  # fmt: skip
    generating.add_machine(parser)
    generating.add_prefix_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve it until a signal. Raises ServerError without the extra, and for a taken address."""
    with held_back():
        try:
            import uvicorn

            from spqt_ti.server.app import Server
        except ModuleNotFoundError as error:
            raise ServerError(f"{error.name} is not installed: pip install 'spqt-ti[server]'") from error
        from spqt_ti import api
        from spqt_ti.sparsity.shared_policies import find_policy
    settings = _settings(arguments)
    if arguments.policy is None:
        api.check_level(arguments.sparsity)
    policies = {}
    for pair in arguments.offer:
        name, sign, file = pair.partition("=")
        if not (name and sign and file):
            arguments.parser.error(f"--offer takes NAME=FILE, not {pair!r}")
        policies[name] = find_policy(file)
    listening = _listen(arguments.host, arguments.port)
    model = generating.load(arguments, api.open_quantized(arguments.model, arguments.backend))
    model.generate("a", max_new_tokens=2)  # compiles what the first request would wait for
    server = Server(model, settings, policies)
    host, port = listening.getsockname()[:2]
    listening.listen(128)  # whoever reads the next line may connect
    shown = f"[{host}]" if ":" in host else host
    print(f"{settings.name}: http://{shown}:{port}/ (OpenAI's API: http://{shown}:{port}/v1)", file=sys.stderr)
    if settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
        print("spqt: whoever reaches this address may use the model: --api-key-file sets a key", file=sys.stderr)
    config = uvicorn.Config(
        server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False,
        limit_concurrency=settings.waiting + 256, lifespan="on",
    )  # fmt: skip
    try:
        with generating.prefix_cache(model, arguments.prefix_cache):
            uvicorn.Server(config).run(sockets=[listening])
            server.close()  # nobody computes while the prefix is written
    finally:
        server.close()


def _settings(arguments: argparse.Namespace) -> Settings:
    from spqt_ti.server.settings import Settings

    key = os.environ.get(KEY_VARIABLE) or None
    if arguments.api_key_file is not None:
        key = read_text(arguments.api_key_file, ServerError).strip()
    name = arguments.name or Path(arguments.model).name
    return Settings(
        name, key, tuple(arguments.allow_host), tuple(arguments.allow_origin), arguments.queue, arguments.max_body,
        arguments.max_tokens, seconds=arguments.max_seconds, on_overflow=arguments.on_overflow,
        pooling=arguments.pooling,
    )  # fmt: skip


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, before the model is loaded: a taken port is said at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With the protocol's number: only for such sockets asyncio switches Nagle's algorithm off (40 ms per answer).
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening
    except (OSError, OverflowError) as error:
        raise ServerError(f"cannot listen on {host}, port {port}: {error}; --port takes another") from error
