"""What clients send: one image's bytes, files in a form, or a JSON list of base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Receive

from ..bulk.rows import written_error
from ..image import Fetched

LINGER_SECONDS = 5.0
"""For which what still comes of a refused request is read, and dropped."""


class Refused(Exception):  # noqa: N818
    """A request that gets no answer but this status and these words.

    Args:
        headers: of the response.
    """

    def __init__(self, status: int, words: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.headers = headers or {}


class _Form(MultiPartParser):
    spool_max_size = (
        1 << 62
    )  # in memory, which the limit of the body bounds: nothing of a client's goes to the disk


async def read_images(request: Request, max_bytes: int, most: int) -> tuple[list[Fetched], bool]:
    """The images of a request, which are bytes whatever a client sends: no path and no URL is ever opened for one.

    Args:
        max_bytes: of the body at most.
        most: images at most.

    Returns:
        The images with the names that errors give them, and whether the body was one image and no list of them.

    Raises:
        Refused: it is too large, or holds no images.
        ClientDisconnect: there is nobody to answer any more.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, max_bytes, most), False
    body = b"".join([chunk async for chunk in _chunks(request, max_bytes)])
    if kind != "application/json":
        return [Fetched(body, "image bytes")], True
    return await asyncio.to_thread(_json_list, body, most), False


async def _chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    too_large = Refused(413, f"body: expected at most {max_bytes} bytes")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        yield chunk
    request.state.read = True


async def _form(request: Request, max_bytes: int, most: int) -> list[Fetched]:
    chunks: Any = _chunks(request, max_bytes)
    parser = _Form(request.headers, chunks, max_files=most, max_fields=most)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        words = getattr(error, "message", str(error))
        status = 413 if words.startswith("Too many") else 400
        raise Refused(status, f"body: no multipart/form-data: {words}") from error
    images = []
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise Refused(400, f"body: {name}: expected files, got a field that has no file name")
        images.append(Fetched(value.file.read(), written_error(value.filename or name)))
    if not images:
        raise Refused(400, "body: expected at least one file, got none")
    return images


def _json_list(body: bytes, most: int) -> list[Fetched]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"body: no JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise Refused(400, "body: expected a list of images, each base64 in a string")
    if len(items) > most:  # before anything is made of them: a small body can hold millions
        raise Refused(
            413, f"body: expected at most {most} images, got {len(items)}; send them in several requests"
        )
    return [Fetched(_decoded(item, number), f"image {number}") for number, item in enumerate(items)]


def _decoded(item: object, number: int) -> bytes:
    try:
        if isinstance(item, str):
            return base64.b64decode(item, validate=True)
        reason = f"got {type(item).__name__}"
    except (binascii.Error, ValueError) as error:
        reason = str(error)
    raise Refused(
        400, f"image {number}: expected an image file's bytes as base64, which alone is taken: {reason}"
    )


async def drained(receive: Receive) -> None:
    """Returns once the body has come to its end, its client has left, or it has had `LINGER_SECONDS`."""

    async def read() -> None:
        while (message := await receive())["type"] != "http.disconnect" and message.get("more_body"):
            pass

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), LINGER_SECONDS)
