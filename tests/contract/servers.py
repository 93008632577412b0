"""Servers that the tests start: S3 (moto), Azure (Azurite), a proxy that counts and disturbs requests, a web server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import random
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Below those that systems hand out by themselves (Linux from 32768 on, others from 49152 on): one of these could be the end
    of somebody's connection by the time the server that is told of it listens.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server with an empty bucket `bench`."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()
    try:
        yield endpoint
    finally:
        server.stop()


AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has; no secret."""


@contextmanager
def azure_server(command: str) -> Iterator[str]:
    """Azurite, Microsoft's emulator of Azure's blob storage, with an empty container `bench`; gives its blob endpoint."""
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
    server = subprocess.Popen([command, *options, "--disableTelemetry"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        lines = iter(server.stdout.readline, "")
        assert any("successfully listen" in line for line in lines), f"{command} did not start"
        endpoint = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
        _make_container(endpoint, "bench")
        yield endpoint
    finally:
        server.kill()
        server.communicate()


def _make_container(endpoint: str, name: str) -> None:
    """What obstore has no call for. Signed as Microsoft's "Authorize with Shared Key" says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    resource = f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + 12 * "\n" + "".join(f"{key}:{value}\n" for key, value in headers.items()) + resource
    digest = hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    address = f"{endpoint}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)).close()


class _Server:
    """A threading web server in the background."""

    handler: type[BaseHTTPRequestHandler]

    def __enter__(self):
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self._server.daemon_threads = True
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


class _ProxyHandler(_Quiet):
    def _forward(self):
        proxy = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.requests.append((self.command, self.path))
        proxy.count += 1
        fault = proxy.fault if proxy.fault and proxy.count % proxy.every == 0 else ""
        if fault:
            proxy.disturbed += 1
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "slow":
            time.sleep(0.3)
        connection = http.client.HTTPConnection(proxy.target, timeout=300)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "content-length", *proxy.replaced):
                connection.putheader(name, value)
        for name, value in proxy.replaced.items():
            connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "half" and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        proxy.sent += len(content)  # before: once it is written, the test goes on and looks
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward


class CountingProxy(_Server):
    """Passes everything on to `target`; every `every`-th answer suffers the fault 500, 503, slow or half."""

    handler = _ProxyHandler

    def __init__(self, target: str) -> None:
        self.target = urlparse(target).netloc
        self.fault, self.every, self.count, self.disturbed, self.sent = "", 3, 0, 0, 0
        self.replaced: dict[str, str] = {}
        """Headers (in lower case) that every request gets instead of its own."""


class _FolderHandler(_Quiet):
    def _send(self):
        server = self.server.owner
        server.requests.append((self.command, self.path))
        path = server.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        total, status = len(content), 200
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if server.ranges else None
        if match:
            start = int(match[1]) if match[1] else max(0, total - int(match[2]))
            stop = min(total, int(match[2]) + 1) if match[1] and match[2] else total
            content, status = content[start:stop], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD = _send


class FolderServer(_Server):
    """Hands out the files of a folder, whole or (unless without `ranges`) by ranges, and lists nothing."""

    handler = _FolderHandler

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
