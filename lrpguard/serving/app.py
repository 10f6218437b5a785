"""The HTTP application: routes, and how what happens inside becomes an answer."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from lrpguard.serving import oip, openapi
from lrpguard.serving.answer import Outcome
from lrpguard.serving.bodies import BodyLimits
from lrpguard.serving.config import ServiceConfig
from lrpguard.serving.decode import decode_image
from lrpguard.serving.logs import log
from lrpguard.serving.page import page
from lrpguard.serving.records import Call
from lrpguard.serving.refusal import RefusedError, bad_request
from lrpguard.serving.service import Service
from lrpguard.serving.shown import shown, shown_maps
from lrpguard.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

REQUEST_ID = "X-Request-ID"

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MULTIPART = "multipart/form-data"

T = TypeVar("T")


def create_app(config: ServiceConfig, environment: Mapping[str, str]) -> "FastAPI":
    """Return the application; it loads its guard when it is started.

    Args:
        config: The settings.
        environment: Variables; ``LRPGUARD_KEY`` is read.
    """
    return app_of(Service(config, environment))


def app_of(service: Service) -> "FastAPI":
    """Return the application of a service, which starts and closes with it."""
    from fastapi import FastAPI

    config = service.config

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, float]]:
        await service.start()
        limits = config.limits
        yield {"header_seconds": limits.header_seconds, "send_seconds": limits.body_seconds}
        await service.close()

    app = FastAPI(
        title="lrpguard",
        version=__version__,
        description="A guarded image classifier. The model takes pixels in [0, 1], NCHW.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        BodyLimits,
        max_bytes=config.limits.body_bytes,
        seconds=config.limits.body_seconds,
    )
    _add_error_handlers(app)
    _Routes(service).add_to(app)
    return app


class _Routes:
    """The routes of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.config = service.config
        self.scores = service.config.answer.expose_scores

    def add_to(self, app: "FastAPI") -> None:
        from fastapi import Request
        from starlette.responses import Response

        # FastAPI reads these annotations, which must be classes: fastapi is imported here alone.
        async def infer(request: Request, model: str) -> Response:
            """Judge a batch of tensors, by the Open Inference Protocol."""
            return await self._answered(
                request, "POST /v2/models/{model}/infer", self._infer, model
            )

        async def infer_version(request: Request, model: str, version: str) -> Response:
            """Judge a batch of tensors by a named version of the model."""
            route = "POST /v2/models/{model}/versions/{version}/infer"
            return await self._answered(request, route, self._infer, model, version)

        async def predict(request: Request) -> Response:
            """Judge an image file: the body itself, or the field ``file`` of a form."""
            return await self._answered(request, "POST /predict", self._predict)

        add = partial(app.add_api_route, response_model=None)
        model = "/v2/models/{model}"
        add("/v2", self.server, methods=["GET"], **openapi.SERVER)
        add("/v2/health/live", self.live, methods=["GET"], **openapi.LIVE)
        add("/v2/health/ready", self.ready, methods=["GET"], **openapi.READY)
        add(model, self.metadata, methods=["GET"], **openapi.METADATA)
        add(f"{model}/ready", self.model_ready, methods=["GET"], **openapi.READY)
        add(f"{model}/infer", infer, methods=["POST"], **openapi.INFER)
        version = f"{model}/versions/{{version}}"
        add(version, self.version_metadata, methods=["GET"], **openapi.METADATA)
        add(f"{version}/ready", self.version_ready, methods=["GET"], **openapi.READY)
        add(f"{version}/infer", infer_version, methods=["POST"], **openapi.INFER)
        add("/predict", predict, methods=["POST"], **openapi.PREDICT)
        if self.config.answer.metrics:
            add("/metrics", self.metrics, methods=["GET"], include_in_schema=False)
        if self.config.answer.page:
            add("/", self.page, methods=["GET"], include_in_schema=False)

    async def server(self) -> dict[str, Any]:
        """Tell what this is."""
        return {"name": "lrpguard", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def live(self) -> dict[str, Any]:
        """Say whether the process answers."""
        return {"live": True}

    async def ready(self) -> "Response":
        """Say whether requests may come: model, calibration and self-test fit together."""
        reason = await self.service.not_ready()
        return _json({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    async def model_ready(self, model: str) -> "Response":
        """Say whether requests for this model may come."""
        self._check_model(model)
        return await self.ready()

    async def metadata(self, model: str) -> dict[str, Any]:
        """Tell the model's inputs and outputs."""
        self._check_model(model)
        opened = self.service.opened()
        names = opened.class_names
        return oip.metadata(
            model,
            opened.calibration.image_shape,
            None if names is None else len(names),
            scores=self.scores,
        )

    async def version_ready(self, model: str, version: str) -> "Response":
        """Say whether requests for this version of the model may come."""
        self._check_model(model, version)
        return await self.ready()

    async def version_metadata(self, model: str, version: str) -> dict[str, Any]:
        """Tell the inputs and outputs of this version of the model."""
        self._check_model(model, version)
        return await self.metadata(model)

    async def metrics(self) -> "Response":
        """Return the metrics of all workers."""
        from starlette.responses import Response

        content, kind = await asyncio.to_thread(self.service.metrics.exposition)
        return Response(content, headers={"Content-Type": kind})

    async def page(self) -> "Response":
        """Return the page for people."""
        from starlette.responses import Response

        found = page(scores=self.scores, model=self.config.model.name)
        return Response(found.content, media_type="text/html", headers=found.headers)

    async def _infer(
        self, request: "Request", call: Call, model: str, version: str = oip.VERSION
    ) -> tuple["Response", tuple[Outcome, ...]]:
        from starlette.responses import Response

        self._check_model(model, version)
        opened = self.service.opened()
        body = await request.body()
        read = partial(
            oip.parse,
            body,
            call.headers.get(oip.HEADER_LENGTH),
            image_shape=opened.calibration.image_shape,
            max_images=self.config.limits.images,
            scores=self.scores,
        )
        asked = await self.service.in_thread(call, "decode", read)
        outcomes = await _while_connected(request, self.service.judge(asked.images, call))
        content, json_length = oip.answer(
            outcomes, asked, model=model, request_id=call.id, scores=self.scores
        )
        headers = {} if json_length is None else {oip.HEADER_LENGTH: str(json_length)}
        kind = "application/json" if json_length is None else "application/octet-stream"
        return Response(content, media_type=kind, headers=headers), outcomes

    async def _predict(
        self, request: "Request", call: Call
    ) -> tuple["Response", tuple[Outcome, ...]]:
        maps = _flag(request.query_params.get("maps"))
        if maps and not self.scores:
            raise RefusedError(403, "not_exposed", "maps are not exposed: answer.expose_scores.")
        opened = self.service.opened()
        content = await _file(request)
        image: Tensor = await self.service.in_thread(
            call,
            "decode",
            partial(
                decode_image,
                content,
                opened.preprocessing,
                max_pixels=self.config.limits.pixels,
            ),
        )
        work = self.service.judge(image[None], call, maps=maps)
        outcomes = await _while_connected(request, work)
        answer = shown(outcomes[0], opened, request_id=call.id, scores=self.scores)
        if maps:
            answer |= shown_maps(image, outcomes[0], opened.calibration)
        return _json(answer), outcomes

    async def _answered(
        self,
        request: "Request",
        route: str,
        work: Callable[..., Awaitable[tuple["Response", tuple[Outcome, ...]]]],
        *args: str,
    ) -> "Response":
        """Run a request from its arrival to its line in the log, whatever becomes of it."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        call = _call(request, route)
        outcomes: tuple[Outcome, ...] | None = None
        refusal: RefusedError | None = None
        self.service.metrics.inflight.inc()
        try:
            _check_encoding(call)
            response, outcomes = await work(request, call, *args)
        except RefusedError as error:
            refusal = error
            response = refused(error, call.id)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception:
            refusal = RefusedError(500, "internal", "the service failed.")
            raise
        finally:
            self.service.metrics.inflight.dec()
            self.service.finish(call, outcomes, refusal)
        response.headers[REQUEST_ID] = call.id
        return response

    def _check_model(self, model: str, version: str = oip.VERSION) -> None:
        if model != self.config.model.name:
            raise RefusedError(404, "no_model", "there is no such model here.")
        if version != oip.VERSION:
            raise RefusedError(
                404, "no_version", f"there is no such version; the one there is: {oip.VERSION}."
            )


def refused(error: RefusedError, request_id: str) -> "Response":
    """Return the answer to a refused request."""
    response = _json(oip.refused(error, request_id), error.status)
    response.headers[REQUEST_ID] = request_id
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status in (408, 413):  # the rest of its body is not wanted
        response.headers["Connection"] = "close"
    return response


def _add_error_handlers(app: "FastAPI") -> None:
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def on_refusal(request: "Request", error: Exception) -> "Response":
        assert isinstance(error, RefusedError)
        return refused(error, _request_id(request))

    async def on_http(request: "Request", error: Exception) -> "Response":
        assert isinstance(error, HTTPException)
        refusal = RefusedError(error.status_code, "http", str(error.detail))
        response = refused(refusal, _request_id(request))
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(request: "Request", _: Exception) -> "Response":
        return refused(bad_request("the request is malformed."), _request_id(request))

    async def on_failure(request: "Request", error: Exception) -> "Response":
        name = _request_id(request)
        log.error("the service failed", exc_info=error, extra={"request_id": name})
        refusal = RefusedError(500, "internal", "the service failed; its log says more.")
        return refused(refusal, name)

    app.add_exception_handler(RefusedError, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_failure)


async def _while_connected(request: "Request", work: Coroutine[Any, Any, T]) -> T:
    """Return the result of some work, or give it up where the client leaves.

    Raises:
        ClientDisconnect: The client left first.
    """
    from starlette.requests import ClientDisconnect

    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: "Request") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _file(request: "Request") -> bytes:
    """Return the image file of a request."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    if not request.headers.get("content-type", "").lower().startswith(_MULTIPART):
        content = await request.body()
    else:
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                field = form.get("file")
                if not isinstance(field, UploadFile):
                    raise bad_request("the form has no file in the field 'file'.")
                content = await field.read()
        except HTTPException as error:
            raise bad_request(f"the form is malformed: {error.detail}") from error
    if not content:
        raise bad_request("the body is empty; send an image file.")
    return content


def _check_encoding(call: Call) -> None:
    if call.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "encoding", "compressed bodies are not taken; send it plain.")


def _call(request: "Request", route: str) -> Call:
    client = "" if request.client is None else request.client.host
    return Call(_request_id(request), route, client, dict(request.headers))


def _request_id(request: "Request") -> str:
    """Return the client's name for a request where it is a harmless one, else a new one.

    It is kept with the request: whatever answers it, the answer and the log have the same.
    """
    if not hasattr(request.state, "request_id"):
        given = request.headers.get(REQUEST_ID, "")
        request.state.request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
    return str(request.state.request_id)


def _flag(value: str | None) -> bool:
    if value is None or value.lower() in ("0", "false"):
        return False
    if value.lower() in ("", "1", "true"):
        return True
    raise bad_request("maps is neither true nor false.")


def _json(content: dict[str, Any], status: int = 200) -> "Response":
    from starlette.responses import Response

    text = json.dumps(content, allow_nan=False)
    return Response(text, status_code=status, media_type="application/json")
