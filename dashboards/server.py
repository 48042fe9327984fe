"""Serves the live page, on this machine alone unless told otherwise. Standard library only: it has two files to give.

Every answer depends on the last part of the path, so that the page works behind any prefix of a reverse proxy.
"""

import ipaddress
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from dashboards.feed import Feed
from dashboards.page import live_page

HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_server(results: str, host: str, port: int, select: str | None = None) -> "PageServer":
    """A server of the page of one results folder, not yet serving; port 0 takes a free one.

    Raises what reading the folder raises, and ValueError where the address cannot be had.
    """
    feed = Feed(results, select)
    feed.get()  # a folder that cannot be read is said now, not in a browser
    try:
        return PageServer(feed, host, port)
    except OSError as error:
        raise ValueError(f"cannot serve on {host} port {port} ({error.strerror}): take another --port, or 0") from error


def serve(results: str, host: str, port: int, select: str | None, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `say` gets what the user needs to know."""
    server = make_server(results, host, port, select)
    at = server.server_address[1]
    say(f"http://{_shown(host)}:{at}/   (Ctrl-C ends it)")
    if is_loopback(host):
        say(f"From another machine: ssh -L {at}:127.0.0.1:{at} THIS-HOST, then http://127.0.0.1:{at}/ there")
    else:
        say(f"Warning: whoever reaches {host} can read this study; there is no password and no encryption.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer(ThreadingHTTPServer):
    """Listens at `host` and `port`; a thread for each connection."""

    daemon_threads = True

    def __init__(self, feed: Feed, host: str, port: int):
        self.feed, self.page, self.any_name = feed, live_page(), not is_loopback(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: PageServer
    server_version, sys_version = "cser-ray", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        last = path.rpartition("/")[2]
        if not self._name_is_ours():
            text = "this server answers to localhost and 127.0.0.1 only: let the proxy send one of them as Host"
            self._send(HTTPStatus.MISDIRECTED_REQUEST, text.encode(), "text/plain")
        elif last == "data.json":
            self._data()
        elif not last:
            self._send(HTTPStatus.OK, self.server.page.html, "text/html; charset=utf-8", self._policy())
        elif "." not in last:  # a prefix without its slash: relative addresses need it
            self._send(HTTPStatus.PERMANENT_REDIRECT, b"", "text/plain", {"Location": f"{last}/"})
        else:
            self._send(HTTPStatus.NOT_FOUND, b"there is only the page and its data.json here", "text/plain")

    do_HEAD = do_GET

    def _data(self) -> None:
        try:
            data = self.server.feed.get()
        except (OSError, ValueError) as error:  # the folder vanished, or is of a later version now
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, str(error).encode(), "text/plain; charset=utf-8")
            return
        tag = f'"{data.tag}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", "application/json", {"ETag": tag})
        elif "gzip" in self.headers.get("Accept-Encoding", ""):
            packed = {"ETag": tag, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            self._send(HTTPStatus.OK, data.packed, "application/json", packed)
        else:
            self._send(HTTPStatus.OK, data.plain, "application/json", {"ETag": tag, "Vary": "Accept-Encoding"})

    def _name_is_ours(self) -> bool:
        """A page of another site may give its name our address (DNS rebinding): then it sends that name as Host."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = None
        return self.server.any_name or (host is not None and is_loopback(host))

    def _policy(self) -> dict[str, str]:
        return {"Content-Security-Policy": f"{self.server.page.policy}; frame-ancestors 'none'"}

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a poll every two seconds is no news."""


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
