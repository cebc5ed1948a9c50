"""The application: routes, and how what they raise is answered."""

import contextlib
import mimetypes
from collections.abc import AsyncGenerator
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from metamorph import __version__
from metamorph.decoder.kinds import OpenedDecoder
from metamorph.errors import UserError
from metamorph.serving import chat, images
from metamorph.serving.chat_request import ChatRequest
from metamorph.serving.engine import EngineThread, Speaker
from metamorph.serving.fetching import Fetcher
from metamorph.serving.fields import refusal
from metamorph.serving.guard import Door, Guard
from metamorph.serving.image_requests import ImagesRequest, RedrawRequest, SeenRequest
from metamorph.serving.limits import DEFAULT_LIMITS, Limits
from metamorph.serving.metrics import Metrics
from metamorph.serving.pictures import PictureReader
from metamorph.serving.refusals import ErrorBody, Refused, invalid, unavailable
from metamorph.serving.served import Served
from metamorph.serving.service import Service

PAGE = "index.html"
OF_THE_ROUTER = {
    404: ("not_found", "there is nothing here"),
    405: ("method_not_allowed", "this method is not taken here"),
}


def create_app(
    assistant: Speaker,
    served: Served,
    *,
    decoder: OpenedDecoder | None = None,
    limits: Limits = DEFAULT_LIMITS,
    door: Door | None = None,
    fetcher: Fetcher | None = None,
) -> FastAPI:
    """Everything but the sockets. Its thread begins and ends with the application's lifespan.

    `decoder` draws what the page asks for; `door` says who is let in (default: everybody, by any
    name), `fetcher` whose pictures are fetched (default: nobody's).
    """
    engine = EngineThread(assistant, decoder)
    metrics = Metrics(engine)
    pictures = PictureReader(served, limits, fetcher or Fetcher())
    service = Service(served, engine, limits, pictures, metrics)
    door = door or Door()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        engine.start()
        yield
        engine.stop()
        pictures.stop()

    app = FastAPI(
        title="MetaMorph", version=__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json",
        responses={code: {"model": ErrorBody} for code in ("4XX", "5XX")},
    )  # fmt: skip
    app.state.service, app.state.door = service, door
    app.add_middleware(Guard, door=door, limits=limits, engine=engine, metrics=metrics)
    _add_answers(app, service)
    _add_facts(app, service, door)
    _add_page(app)
    _add_errors(app, metrics)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await chat.complete(service, body, request)

    @app.post("/v1/images/generations")
    async def image_generations(body: ImagesRequest, request: Request) -> Response:
        return await images.generate(service, body, request)

    @app.post("/v1/metamorph/seen")
    async def seen(body: SeenRequest, request: Request) -> Response:
        return await images.seen(service, body, request)

    @app.post("/v1/metamorph/redraw")
    async def redraw(body: RedrawRequest, request: Request) -> Response:
        return await images.redraw(service, body, request)


def _add_facts(app: FastAPI, service: Service, door: Door) -> None:
    served = service.served
    model = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "metamorph",
        "metamorph": {"draws": served.draws, "image_tokens": served.tokens},
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        served.check_name(name)
        return model

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def health() -> JSONResponse:
        """200 while requests are taken: what a balancer asks for."""
        if service.engine.broken:
            raise unavailable("the engine has failed", "engine_failed")
        if door.stopping:
            raise unavailable("the server is stopping", "stopping")
        return JSONResponse({"status": "ok", "model": served.name})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    """The page and its parts, each by its name; nothing else of the disk is served."""
    folder = files("metamorph.serving") / "page"
    for part in folder.iterdir() if folder.is_dir() else ():
        kind = mimetypes.guess_type(part.name)[0]
        if kind is not None and part.is_file():
            _add_part(app, part.name, part.read_bytes(), kind)


def _add_part(app: FastAPI, name: str, content: bytes, kind: str) -> None:
    @app.get("/" if name == PAGE else f"/{name}", include_in_schema=False)
    async def part() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


def _add_errors(app: FastAPI, metrics: Metrics) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if not isinstance(error, Refused):  # of the router, or of a body that cannot be read
            code, message = OF_THE_ROUTER.get(
                error.status_code, ("invalid_json", "the body cannot be read")
            )
            message = f"{request.method} {request.url.path}: {message}"
            error = Refused(error.status_code, message, code=code, headers=error.headers)
        return metrics.refuse(error)

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> JSONResponse:
        return metrics.refuse(refusal(error.errors()))

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return metrics.refuse(invalid(None, str(error)))
