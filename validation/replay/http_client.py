"""As much HTTP/1.1 as a replay needs, with the standard library: a request, its answer, an event stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sim.errors import InputError

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Server:
    """Where a server listens; `base` is a path in front of every path, without a slash at its end."""

    host: str
    port: int
    base: str = ""

    @property
    def url(self) -> str:
        """As a URL."""
        return f"http://{self.host}:{self.port}{self.base}"


class HttpError(Exception):
    """An answer that is not 200, or that is no HTTP."""


def parse_url(url: str) -> Server:
    """The server of a URL such as http://127.0.0.1:8000.

    Raises:
        InputError: not an http URL.
    """
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
    try:
        port = parts.port or 80
    except ValueError:
        raise InputError(f"'{url}' has no valid port", "--url") from None
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"'{url}' is not an http URL", "--url", hint="such as http://127.0.0.1:8000")
    return Server(parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))


@dataclass
class Answer:
    """An answer whose body is still to be read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := int((await self._line()).split(b";")[0], 16):
                yield await self.reader.readexactly(size)
                await self._line()
            await self._line()
        elif "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left > 0 and (data := await self.reader.read(min(left, 65536))):
                left -= len(data)
                yield data
        else:
            while data := await self.reader.read(65536):
                yield data

    async def _line(self) -> bytes:
        line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise HttpError("the connection ended inside an answer")
        return line.strip()

    async def body(self) -> bytes:
        """The whole body."""
        return b"".join([data async for data in self.chunks()])

    async def events(self) -> AsyncIterator[str]:
        """The data of each server-sent event, up to "[DONE]"."""
        rest = b""
        async for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    text = line[5:].strip().decode()
                    if text == "[DONE]":
                        return
                    yield text


@asynccontextmanager
async def request(server: Server, path: str, body: Any = None) -> AsyncIterator[Answer]:
    """GET, or POST of a JSON body, on a connection of its own.

    Raises:
        OSError, HttpError, TimeoutError: no answer, or none that can be read.
    """
    reader, writer = await asyncio.wait_for(asyncio.open_connection(server.host, server.port), TIMEOUT_S)
    try:
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        lines = [
            f"{'GET' if body is None else 'POST'} {server.base}{path} HTTP/1.1",
            f"Host: {server.host}:{server.port}",
            "Connection: close",
            "Accept: */*",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await writer.drain()
        yield await _head(reader)
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> Answer:
    first = (await reader.readline()).decode("latin-1").split(None, 2)
    if len(first) < 2 or not first[0].startswith("HTTP/") or not first[1].isdigit():
        raise HttpError("the answer is not HTTP")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Answer(int(first[1]), headers, reader)


async def get(server: Server, path: str) -> bytes:
    """The body of a GET that is answered with 200.

    Raises:
        OSError, HttpError, TimeoutError: as `request`; HttpError for any other status.
    """

    async def whole() -> bytes:
        async with request(server, path) as answer:
            data = await answer.body()
            if answer.status != 200:
                raise HttpError(f"{path}: status {answer.status}")
            return data

    return await asyncio.wait_for(whole(), TIMEOUT_S)


def parse_metrics(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Prometheus text as name -> [(labels, value)]; lines that are none are left out."""
    out: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        head, _, value = line.rpartition(" ")
        name, brace, rest = head.partition("{")
        try:
            number = float(value)
        except ValueError:
            continue
        labels = {}
        if brace:
            for part in rest.rstrip().removesuffix("}").split('",'):
                key, _, content = part.partition('="')
                if key:
                    labels[key.strip()] = content.removesuffix('"')
        out.setdefault(name.strip(), []).append((labels, number))
    return out
