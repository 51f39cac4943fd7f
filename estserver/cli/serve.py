"""The command that serves: in one process, or with several workers."""

import asyncio
import gc
import os

import click

from estserver.cli.operator import Operator

_ROOTS = "SSL_CERT_FILE"
"""What names their file to OpenSSL."""


@click.command()
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that share the ports: as many as there are processor cores.",
)
@click.option(
    "--test-mode",
    is_flag=True,
    help="Obey ESTSERVER_FAULTS and ESTSERVER_FAILPOINT: for tests only.",
)
@click.pass_obj
def serve(operator: Operator, *, workers: int, test_mode: bool) -> None:
    """Serve on all listeners until SIGTERM; SIGHUP reloads profiles and TLS certificates."""
    settings = operator.settings()
    # What is made until it listens stays: looking for garbage among it takes a fifth of the time.
    gc.disable()
    try:
        _import_aiohttp()
        # Imported here: workers count in files, which must be said before there are counters.
        if workers > 1:
            from estserver.supervisor import supervise  # noqa: PLC0415 - see above

            supervise(settings, operator.settings, workers, test_mode=test_mode)
        else:
            from estserver import server  # noqa: PLC0415 - see above

            if test_mode:
                server.enter_test_mode(os.environ)
            asyncio.run(server.serve(settings, operator.settings))
    finally:
        gc.enable()


def _import_aiohttp() -> None:
    """Import aiohttp without the roots that this system trusts: 1.8 MB, and 50 ms to read them.

    It keeps them for clients that do not say whom they trust. There are none here: what validates
    for ACME has a context of its own.
    """
    before = os.environ.get(_ROOTS)
    os.environ[_ROOTS] = os.devnull
    try:
        import aiohttp  # noqa: F401, PLC0415 - see above
    finally:
        if before is None:
            del os.environ[_ROOTS]
        else:
            os.environ[_ROOTS] = before
