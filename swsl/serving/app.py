"""The routes of the server."""

from __future__ import annotations

import ctypes
import importlib.resources
import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from ..image import ImageError
from ..prediction import Result
from ..version import __version__
from .bodies import Refused, drained, read_images
from .metrics import Metrics
from .service import Service

_BYTES = "application/octet-stream"
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "object", "additionalProperties": {"type": "array", "items": _FILE}}
_LIST = {"type": "array", "items": {"type": "string", "format": "byte"}}
_ONE = {"application/octet-stream": {"schema": _FILE}}
_SEVERAL = {"multipart/form-data": {"schema": _FILES}, "application/json": {"schema": _LIST}}
_FewK = Annotated[int, Query(ge=1, le=10, description="classes to explain")]
_TopK = Annotated[int, Query(ge=1, description="classes for each image")]


def make_app(service: Service, *, max_bytes: int) -> FastAPI:
    """The ASGI application.

    Args:
        service: what computes.
        max_bytes: of a request's body at most.
    """
    # FastAPI's own pages of documentation fetch scripts from elsewhere.
    app = FastAPI(title="swsl", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _failed)
    page = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    facts = _facts(service, max_bytes)

    async def answer(request: Request, shown: Callable[[Result], dict[str, Any]]) -> Response:
        images, alone = await service.read(read_images(request, max_bytes, service.max_queue))
        answers = await service.answer(request, images)
        if alone:
            return JSONResponse(shown(_sound(answers[0])))
        rows = [
            {"name": image.name} | ({"error": str(found)} if isinstance(found, ImageError) else shown(found))
            for image, found in zip(images, answers, strict=True)
        ]
        if all("error" in row for row in rows):
            words = f"none of {len(rows)} images can be used" if len(rows) > 1 else rows[0]["error"]
            return JSONResponse({"error": words, "results": rows}, 400)
        return JSONResponse({"results": rows})

    @app.post(
        "/classify",
        summary="The likeliest classes of images",
        description="Of one image's bytes {predictions}; of files in a form or a JSON list of base64 {results}, in which one "
        "that cannot be used has an error in its place. 400 where none can be used.",
        openapi_extra=_takes(_ONE | _SEVERAL),
    )
    async def classify(request: Request, top_k: _TopK = 5) -> Response:
        return await answer(
            request, lambda found: {"predictions": [p.__dict__ for p in service.predictions(found, top_k)]}
        )

    @app.post(
        "/embed",
        summary="The pooled features of images",
        description="As /classify, with {embedding}. With Accept: application/octet-stream one image's are float32 numbers, "
        "little-endian.",
        openapi_extra=_takes(_ONE | _SEVERAL),
    )
    async def embed(request: Request) -> Response:
        if _BYTES not in request.headers.get("accept", ""):
            return await answer(request, lambda found: {"embedding": _features(found).tolist()})
        images, _ = await service.read(read_images(request, max_bytes, most=1))
        features = _features(_sound((await service.answer(request, images))[0]))
        return Response(ctypes.string_at(features.data_ptr(), features.nbytes), media_type=_BYTES)

    @app.post(
        "/explain",
        summary="What the model sees of one image, and where it looks for each of the likeliest classes",
        description="{crop, predictions}: PNGs in base64, those of the predictions in their overlay; without them no_overlay "
        "says why.",
        openapi_extra=_takes(_ONE | _SEVERAL),
    )
    async def explain(request: Request, top_k: _FewK = 3) -> Response:
        images, _ = await service.read(read_images(request, max_bytes, most=1))
        try:
            return JSONResponse(await service.explain(request, images[0], top_k))
        except ImageError as error:
            raise Refused(400, str(error)) from error

    @app.head("/health", include_in_schema=False)  # which load balancers ask
    @app.get("/health", summary="200 while images are accepted, else 503")
    async def health() -> Response:
        if service.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "closing" if service.closing else "failed"}, 503)

    @app.get("/metadata", summary="The model, what computes it, and the limits of requests")
    async def metadata() -> Response:
        return JSONResponse(facts)

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page)

    paths = {"/", *app.openapi()["paths"]}
    app.add_middleware(_Counted, metrics=service.metrics, paths=paths)
    return app


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _facts(service: Service, max_bytes: int) -> dict[str, Any]:
    runner, metadata = service.runner, service.metadata
    engine = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in runner.info._asdict().items()
    }
    return {
        **{name: metadata[name] for name in ("variant", "license", "versions", "fingerprint", "preprocess")},
        "server": __version__,
        "engine": engine,
        "limits": {"bytes": max_bytes, "images": service.max_queue, "pixels": runner.max_pixels},
        "labels": list(runner.labels),
    }


def _sound(found: Result | ImageError) -> Result:
    if isinstance(found, ImageError):
        raise Refused(400, str(found)) from found
    return found


def _features(found: Result) -> Tensor:
    assert found.embedding is not None
    return found.embedding


class _Counted:
    """Counts requests and the status of their answers. Paths of which a client may invent any number count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 499

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:  # which is answered outside of here
            status = 500
            raise
        finally:
            self._metrics.request(scope["path"] if scope["path"] in self._paths else "other", status)


class _Early(JSONResponse):
    """Sent before the request has come to its end. What still comes is dropped for a while: a connection that is closed upon
    data loses what was sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await drained(receive)
                message = {**message, "body": b""}
            await send(message)

        self.headers["Connection"] = "close"
        await super().__call__(scope, receive, sent)


async def _refused(request: Request, error: Any) -> Response:
    kind = JSONResponse if getattr(request.state, "read", False) else _Early
    return kind({"error": str(error)}, error.status, error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    words = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": words}, error.status_code, error.headers)


async def _wrong_query(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}"}, 400)


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # for the log: nobody receives it


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
