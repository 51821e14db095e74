"""HTTP gateway of a teacher service.

The gateway is a Serve deployment in front of the replicas. It checks the token and the size of a request, and passes
groups to the replicas by reference.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Protocol

import ray
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from ray.serve import Application

from actors.teacher.client import ask_identity, score_once, scoring_calls
from actors.teacher.gateway_metrics import GatewayMetrics
from actors.teacher.serve import QUIET
from rlad import __version__
from rlad.config import TeacherHttpConfig
from rlad.contracts import TeacherScores
from rlad.errors import AccessError, ContractError, DeadlineError, RladError
from rlad.teacher.http_client import read_token
from rlad.teacher.wire_format import (
    MEDIA_TYPE,
    STATUS,
    Problem,
    ScoringRequest,
    TeacherIdentity,
    problem_of,
    scores_to_bytes,
)

logger = logging.getLogger(__name__)

GATEWAY = "TeacherGateway"
"""Name of the gateway's deployment in an application."""

# Deadline of an answer about the health, which anybody may ask for.
_HEALTH_TIMEOUT_S = 10.0
# Deadline of the upload of a body. A client that sends a body more slowly would hold one of the requests below.
_UPLOAD_TIMEOUT_S = 60.0
_MOST_DIGITS = 18
# Maximum number of concurrent requests of a gateway, which mostly waits for replicas.
_MAX_ONGOING_REQUESTS = 256
_BINARY = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, description="Token of the service."))
]


class Replicas(Protocol):
    """Scoring backend of a gateway."""

    async def identity(self) -> TeacherIdentity: ...

    async def score(self, request: ScoringRequest) -> TeacherScores: ...


class ReplicasByHandle:
    """`Replicas` that are a Serve deployment. Each call makes one attempt; HTTP clients retry themselves."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._scoring = handle, scoring_calls(handle)

    async def identity(self) -> TeacherIdentity:
        return await ask_identity(self._handle, who="the teacher")

    async def score(self, request: ScoringRequest) -> TeacherScores:
        group_ref = ray.put(request.group.to_columns())
        scores_ref, _ = await score_once(
            self._scoring, group_ref, request.tokenizer, request.support, request.client, who="the teacher"
        )
        return TeacherScores.from_columns(await scores_ref)


def http_application(
    replicas: Replicas,
    *,
    token: str,
    timeout_s: float,
    max_request_bytes: int,
    upload_timeout_s: float = _UPLOAD_TIMEOUT_S,
    health_timeout_s: float = _HEALTH_TIMEOUT_S,
) -> FastAPI:
    """Return the ASGI application of a teacher's HTTP interface.

    Args:
        replicas: Scoring backend.
        token: Token that all requests must carry, except those for health and API documentation. `/metrics` requires it
            too.
        timeout_s: Deadline of one request in seconds, including the upload of its body.
        max_request_bytes: Maximum size of a body. A larger body is refused, and not read if it declares its size.
        upload_timeout_s: Deadline of the upload of a body in seconds.
        health_timeout_s: Deadline of the health endpoint in seconds.
    """
    app = FastAPI(
        title="rlad teacher",
        version=__version__,
        description="Scores groups of sampled responses: the log-probability of every token under a frozen teacher. "
        "Bodies are safetensors. `rlad.teacher.http_client.TeacherHttpClient` is a client.",
        redoc_url=None,
        responses={status: {"model": Problem} for status in sorted(set(STATUS.values()))},
    )

    asked, metrics = _Shared(replicas.identity), GatewayMetrics()
    app.add_middleware(metrics.counting)

    def require_token(credentials: _Credentials) -> None:
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
            raise AccessError("the token is missing or wrong: send `Authorization: Bearer TOKEN`")

    @app.exception_handler(RladError)
    async def answer_problem(_: Request, error: RladError) -> JSONResponse:
        status, problem = problem_of(error)
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}.get(
            status
        )
        return JSONResponse(problem.model_dump(), status, headers=headers)

    @app.get("/healthz", summary="Health of the teacher")
    async def health() -> dict[str, str]:
        try:
            async with asyncio.timeout(health_timeout_s):
                await asked.result()
        except TimeoutError as error:
            raise DeadlineError(f"no replica of the teacher answered within {health_timeout_s:g} s") from error
        return {"status": "ok"}

    @app.get("/v1/teacher", summary="Identity of the teacher", dependencies=[Depends(require_token)])
    async def identity() -> TeacherIdentity:
        return await replicas.identity()

    @app.get("/metrics", include_in_schema=False, dependencies=[Depends(require_token)])
    async def metrics_text() -> Response:
        text, media_type = metrics.text()
        return Response(text, media_type=media_type)

    _add_score_route(
        app,
        replicas,
        metrics,
        Depends(require_token),
        timeout_s=timeout_s,
        upload_timeout_s=min(timeout_s, upload_timeout_s),
        max_request_bytes=max_request_bytes,
    )
    return app


def _add_score_route(
    app: FastAPI,
    replicas: Replicas,
    metrics: GatewayMetrics,
    authorisation: Any,
    *,
    timeout_s: float,
    upload_timeout_s: float,
    max_request_bytes: int,
) -> None:
    @app.post(
        "/v1/score",
        summary="Score one group",
        description="Request: arrays `prompt_ids` int32 [P], `response_ids` int32 [N], `response_offsets` "
        "int64 [G + 1]; in the metadata of the header, `words`: JSON with `uid`, `attempt`, `temperature`, `support` "
        '(null, a number or "full"), `tokenizer`, `client`. '
        "Response: `logprobs` float32 [N] and, with a support of K tokens, `support_ids` int32 [N * K], "
        "`support_logprobs` float32 [N * K], `tail_logprobs` float32 [N].",
        dependencies=[authorisation],
        response_class=Response,
        responses={200: _BINARY, 413: {"model": Problem}},
        openapi_extra={"requestBody": {"required": True, **_BINARY}},
    )
    async def score(request: Request) -> Response:
        body: bytes | None = None
        try:
            async with asyncio.timeout(timeout_s):
                async with asyncio.timeout(upload_timeout_s):
                    body = await _body(request, max_request_bytes)
                if body is None:
                    too_large = Problem(
                        error=ContractError.__name__,
                        message=f"the request exceeds {max_request_bytes} bytes: send fewer tokens per request",
                    )
                    return JSONResponse(too_large.model_dump(), 413)
                scores = await replicas.score(ScoringRequest.from_bytes(body))
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise
            what = f"score the group within {timeout_s:g} s"
            if body is None:
                what = f"receive the whole request within {upload_timeout_s:g} s"
            raise DeadlineError(f"the teacher did not {what}") from error
        metrics.count_tokens(len(scores.logprobs))
        return Response(scores_to_bytes(scores), media_type=MEDIA_TYPE)


class _Shared:
    """Question that callers share while it is open, so that any number of callers costs one call."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[Any] | None = None

    async def result(self) -> Any:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # if no caller waits for it
        return await asyncio.shield(self._asking)


async def _body(request: Request, max_bytes: int) -> bytes | None:
    """Return the body of a request; None if it is larger than `max_bytes`."""
    declared = request.headers.get("content-length", "").lstrip("0")
    if declared.isdecimal() and (len(declared) > _MOST_DIGITS or int(declared) > max_bytes):
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


@serve.ingress()
class TeacherGateway:
    """Deployment class of the gateway."""

    def __init__(self, handle: Any, config: TeacherHttpConfig, timeout_s: float) -> None:
        """Read the token on this node.

        Raises:
            AccessError: There is no valid token.
        """
        self._http_application = http_application(
            ReplicasByHandle(handle),
            token=read_token(config),
            timeout_s=timeout_s,
            max_request_bytes=config.max_request_mib << 20,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._http_application


def gateway_application(replicas: Application, config: TeacherHttpConfig, *, timeout_s: float) -> Application:
    """Return an application of a teacher's replicas with a gateway in front of them."""
    gateway = serve.deployment(TeacherGateway).options(
        name=GATEWAY,
        num_replicas=config.gateways,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": config.cpus_per_gateway},
        health_check_timeout_s=60.0,
        max_constructor_retry_count=2,
        logging_config=QUIET,
    )
    return gateway.bind(replicas, config, timeout_s)
