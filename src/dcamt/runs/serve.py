"""A page for one user of this machine: its address holds a secret, and it reads nothing but what
was named when it began."""

import json
import re
import secrets
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rich.console import Console

from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.errors import InputError
from dcamt.reporting.volumes import ShownCase, pack

HOST = "127.0.0.1"
MOST_PORT = 65535
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "X-Content-Type-Options": "nosniff",
}


def serve(
    page: Callable[[], str],
    cases: Sequence[ShownCase],
    curves: Callable[[], Mapping[str, Any]] | None = None,
    browser: bool = True,
    port: int = 0,
) -> None:
    """Serve ``page``, its cases and curves until SIGINT or SIGTERM; then Interrupted.

    Prints the address, and opens it in a ``browser``. ``port`` 0 takes a free one. Raises
    InputError if the port is taken, or is no port.
    """
    if not 0 <= port <= MOST_PORT:
        raise InputError(f"--port {port}: give a number from 0 to {MOST_PORT}")
    try:
        server = make_server(page, cases, curves, port)
    except OSError as error:
        raise InputError(f"--port {port}: cannot be used ({error.strerror})") from None

    def stop(received: list[int]) -> None:
        threading.Thread(target=server.shutdown).start()  # waits for serve_forever to end

    with server, catch_signals(stop) as received:
        print(server.address, flush=True)
        Console(stderr=True).print("Ctrl-C ends it", highlight=False)
        if browser:
            webbrowser.open(server.address)
        server.serve_forever(poll_interval=0.1)
    raise Interrupted(received[0] if received else signal.SIGINT, "the page is served no longer")


class Server(ThreadingHTTPServer):
    """The server with its address; ``answers`` are by the part of the address after the secret."""

    daemon_threads = True
    address: str
    secret: str
    answers: Callable[[str, str], tuple[str, bytes] | None]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that left before it had its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(
    page: Callable[[], str],
    cases: Sequence[ShownCase],
    curves: Callable[[], Mapping[str, Any]] | None = None,
    port: int = 0,
) -> Server:
    """A server that listens on this machine alone, but does not answer yet."""
    reading = threading.Lock()  # a scan may take much of the memory: one at a time

    def answer(path: str, query: str) -> tuple[str, bytes] | None:
        if path == "":
            with reading:
                return "text/html; charset=utf-8", page().encode("utf-8")
        if path == "curves" and curves is not None:
            return "application/json", json.dumps(curves()).encode("utf-8")
        match = re.fullmatch(r"case/([0-9]{1,6})", path)
        if match and int(match[1]) < len(cases):
            with reading:
                layers = cases[int(match[1])].read()
                return "application/octet-stream", pack(layers, whole=query == "whole")
        return None

    server = Server((HOST, port), _Handler)
    server.secret = secrets.token_urlsafe(24)
    server.address = f"http://{HOST}:{server.server_port}/{server.secret}/"
    server.answers = answer
    return server


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dcamt", ""
    timeout = 60

    def do_GET(self) -> None:
        _, secret, *rest = [*self.path.partition("?")[0].split("/", 2), "", ""][:3]
        known = secrets.compare_digest(secret.encode(), self.server.secret.encode())
        # A page of another site may send requests here under a name of its own.
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        if not known or self.headers.get("Host") not in hosts:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"the address lacks its secret\n")
            return
        try:
            found = self.server.answers(rest[0], self.path.partition("?")[2])
        except InputError as error:
            text = str(error).encode("utf-8")
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain; charset=utf-8", text)
            return
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here\n")
        else:
            self._send(HTTPStatus.OK, *found)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (*_HEADERS.items(), ("Content-Type", kind)):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the secret."""
