"""What clients send: one image's bytes, files in a form, or a JSON list of base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ..image import Fetched

BODY_SECONDS = 60.0
"""In which a body has to have come."""


class Refused(Exception):  # noqa: N818
    """A request that gets no answer but this status and these words."""

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
        Refused: it is too large, is too long in coming, or holds no images.
        ClientDisconnect: there is nobody to answer any more.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            images = await asyncio.wait_for(_form(request, max_bytes, most), BODY_SECONDS)
        else:
            body = await asyncio.wait_for(_body(request, max_bytes), BODY_SECONDS)
            if kind != "application/json":
                return [Fetched(body, "image bytes")], True
            images = await asyncio.to_thread(_json_list, body)
    except asyncio.TimeoutError:
        raise Refused(408, f"body: has not come within {BODY_SECONDS:.0f} seconds") from None
    if len(images) > most:
        raise Refused(
            413, f"body: expected at most {most} images, got {len(images)}; send them in several requests"
        )
    return images, False


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


async def _body(request: Request, max_bytes: int) -> bytes:
    return b"".join([chunk async for chunk in _chunks(request, max_bytes)])


async def _form(request: Request, max_bytes: int, most: int) -> list[Fetched]:
    chunks: Any = _chunks(request, max_bytes)
    parser = _Form(request.headers, chunks, max_files=most, max_fields=most)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, f"body: no multipart/form-data: {getattr(error, 'message', error)}") from error
    images = []
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            raise Refused(400, f"body: {name}: expected files, got a field that has no file name")
        images.append(Fetched(value.file.read(), value.filename or name))
    if not images:
        raise Refused(400, "body: expected at least one file, got none")
    return images


def _json_list(body: bytes) -> list[Fetched]:
    try:
        items = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"body: no JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise Refused(400, "body: expected a list of images, each base64 in a string")
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


__all__ = ["ClientDisconnect", "Refused", "read_images"]
