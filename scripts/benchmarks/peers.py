"""Programs that a run measures beside estserver, or needs for it: nginx, pebble, PostgreSQL."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from textwrap import dedent

from scripts.benchmarks.dialogues import Directory
from scripts.benchmarks.generator import Target
from scripts.benchmarks.instances import free_ports, wait_for_port
from scripts.benchmarks.machine import pinned
from scripts.benchmarks.pki import Pki


class Absent(Exception):
    """Something that a figure needs is not there; the text says what and how to get it."""


@contextmanager
def started(
    command: list[str], port: int, log_file: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends; it listens when the block begins."""
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=log_file.parent
        )
    try:
        wait_for_port(port, child, log_file)
        yield child
    finally:
        child.terminate()
        child.wait(30)


def program(name: str, package: str) -> str:
    """Find a program. Raises Absent."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        raise Absent(f"{name} is not installed (Debian package {package})")
    return path


@contextmanager
def bare_nginx(
    folder: Path, pki: Pki, cores: tuple[int, ...]
) -> Iterator[tuple[int, Target, Target]]:
    """Serve a fixed answer over TLS; give its pid, a plain target and one that wants certificates.

    One worker, no tickets, no session cache: every connection is a full handshake.
    """
    nginx = program("nginx", "nginx-light")
    folder.mkdir()
    plain, mutual = free_ports(2)
    answer = "A" * 1000
    configuration = folder / "nginx.conf"
    configuration.write_text(
        dedent(f"""\
        daemon off;
        master_process off;
        worker_processes 1;
        pid {folder}/nginx.pid;
        error_log stderr;
        events {{ worker_connections 4096; }}
        http {{
          access_log off;
          client_body_temp_path {folder}/body;
          proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/fastcgi;
          uwsgi_temp_path {folder}/uwsgi;
          scgi_temp_path {folder}/scgi;
          ssl_certificate {pki.server};
          ssl_certificate_key {pki.server};
          ssl_protocols TLSv1.2 TLSv1.3;
          ssl_session_tickets off;
          ssl_session_cache off;
          keepalive_requests 100000000;
          server {{ listen 127.0.0.1:{plain} ssl backlog=1024; return 200 "{answer}"; }}
          server {{
            listen 127.0.0.1:{mutual} ssl backlog=1024;
            ssl_client_certificate {pki.root};
            ssl_verify_client on;
            ssl_verify_depth 3;
            return 200 "{answer}";
          }}
        }}
        """)
    )
    command = pinned([nginx, "-p", folder, "-e", "stderr", "-c", configuration], cores)
    with started(command, plain, folder / "nginx.log") as child:
        yield (
            child.pid,
            Target(plain, root=pki.root),
            Target(mutual, root=pki.root, holders=(pki.client,)),
        )


@contextmanager
def pebble(
    folder: Path, pki: Pki, cores: tuple[int, ...]
) -> Iterator[tuple[int, Target, Directory]]:
    """Run Debian's pebble, with every validation good, no sleeps and no refused nonces.

    It reuses every authorization, so that a name once proven is ordered like one that an
    invitation covers.
    """
    binary = program("pebble", "pebble")
    folder.mkdir()
    port, management, http, tls = free_ports(4)
    configuration = folder / "pebble.json"
    configuration.write_text(
        json.dumps(
            {
                "pebble": {
                    "listenAddress": f"127.0.0.1:{port}",
                    "managementListenAddress": f"127.0.0.1:{management}",
                    "certificate": str(pki.server),
                    "privateKey": str(pki.server),
                    "httpPort": http,
                    "tlsPort": tls,
                    "ocspResponderURL": "",
                    "externalAccountBindingRequired": False,
                }
            }
        )
    )
    environment = {
        "PEBBLE_VA_ALWAYS_VALID": "1",
        "PEBBLE_VA_NOSLEEP": "1",
        "PEBBLE_WFE_NONCEREJECT": "0",
        "PEBBLE_AUTHZREUSE": "100",
    }
    command = pinned([binary, "-config", configuration], cores)
    with started(command, port, folder / "pebble.log", **environment) as child:
        target = Target(port, root=pki.root)
        yield child.pid, target, read_directory(target, "/dir")


def read_directory(target: Target, path: str) -> Directory:
    """Fetch an ACME directory."""
    context = ssl.create_default_context(cafile=target.root)
    connection = HTTPSConnection(target.name, target.port, timeout=30, context=context)
    try:
        connection.request("GET", path)
        urls = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return Directory(urls["newNonce"], urls["newAccount"], urls["newOrder"])
