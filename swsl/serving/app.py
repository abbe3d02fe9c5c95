"""The routes of the server."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor

from ..image import ImageError
from ..prediction import Result
from ..version import __version__
from .bodies import Refused, read_images
from .service import Service

_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image file, of whatever type; or several files; or a list of them in base64.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {"schema": {"type": "array", "items": {"type": "string", "format": "byte"}}},
        },
    }
}
_TopK = Annotated[int, Query(ge=1, description="classes for each image")]


def make_app(service: Service, *, max_bytes: int) -> FastAPI:
    """The ASGI application.

    Args:
        service: what computes.
        max_bytes: of a request's body at most.
    """
    app = FastAPI(title="swsl", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _failed)
    page = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    facts = _facts(service)

    async def answer(request: Request, shown: Callable[[Result], dict[str, Any]]) -> Response:
        service.check_open()
        images, alone = await read_images(request, max_bytes, service.max_queue)
        answers = await service.answer(request, images)
        if alone:
            if isinstance(answers[0], ImageError):
                raise Refused(400, str(answers[0]))
            return JSONResponse(shown(answers[0]))
        rows = [
            {"name": image.name} | ({"error": str(found)} if isinstance(found, ImageError) else shown(found))
            for image, found in zip(images, answers, strict=True)
        ]
        if all("error" in row for row in rows):
            words = f"none of the {len(rows)} images can be used"
            return JSONResponse({"error": words, "results": rows}, 400)
        return JSONResponse({"results": rows})

    @app.post("/classify", summary="The likeliest classes of images", openapi_extra=_BODY)
    async def classify(request: Request, top_k: _TopK = 5) -> Response:
        return await answer(request, lambda result: {"predictions": _predictions(service, result, top_k)})

    @app.post("/embed", summary="The pooled features of images", openapi_extra=_BODY)
    async def embed(request: Request) -> Response:
        return await answer(request, lambda result: {"embedding": _tensor(result.embedding).tolist()})

    @app.post("/explain", summary="What the model sees of one image, and where it looks", openapi_extra=_BODY)
    async def explain(request: Request, top_k: Annotated[int, Query(ge=1, le=10)] = 3) -> Response:
        service.check_open()
        images, _ = await read_images(request, max_bytes, most=1)
        try:
            return JSONResponse(await service.explain(request, images[0], top_k))
        except ImageError as error:
            raise Refused(400, str(error)) from error

    @app.get("/health", summary="200 while images are accepted, else 503")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}) if service.ready else _error(503, "closing or failed")

    @app.get("/metadata", summary="The model, and what computes it")
    async def metadata() -> Response:
        return JSONResponse(facts)

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page)

    return app


def _facts(service: Service) -> dict[str, Any]:
    runner = service.runner
    engine = runner.info._asdict()
    for name, value in engine.items():
        if isinstance(value, float) and not math.isfinite(value):
            engine[name] = None
    return {
        "variant": service.metadata["variant"],
        "license": service.metadata["license"],
        "versions": service.metadata["versions"],
        "fingerprint": service.metadata["fingerprint"],
        "preprocess": service.metadata["preprocess"],
        "engine": engine,
        "labels": list(runner.labels),
    }


def _tensor(found: Tensor | None) -> Tensor:
    assert found is not None
    return found


def _predictions(service: Service, result: Result, top_k: int) -> list[dict[str, Any]]:
    return [prediction.__dict__ for prediction in service.predictions(result, top_k)]


def _error(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": words}, status, headers)


async def _refused(_: Request, error: Any) -> Response:
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Any) -> Response:
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)


async def _wrong_query(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    return _error(400, f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}")


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # which is not sent


async def _failed(_: Request, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}")
