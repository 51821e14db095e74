"""Custom teacher: an HTTP server that speaks the wire format of rlad's teacher service.

A teacher returns the log-probability of every sampled token under its own distribution. Here a simple rule replaces the
model: 90% of the probability is spread evenly over the tokens that occur in the prompt, 10% over the rest of the
vocabulary. A run uses the server with

    teacher: {url: "http://127.0.0.1:8123"}

and the token in the environment variable RLAD_TEACHER_TOKEN. Three routes are required:

    GET  /healthz      200 while the server works; needs no token
    GET  /v1/teacher   identity of the teacher, as JSON
    POST /v1/score     token ids in, log-probabilities out, as safetensors (rlad/teacher/wire_format.py)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import os
import socket
from collections.abc import AsyncIterator

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from rlad.contracts import RolloutGroup, TeacherScores
from rlad.errors import AccessError, ContractError, RladError, VocabularyMismatchError
from rlad.teacher.http_client import TeacherHttpClient
from rlad.teacher.wire_format import MEDIA_TYPE, ScoringRequest, TeacherIdentity, problem_of, scores_to_bytes
from rlad.testing import make_group

FINGERPRINT = "prompt-copy-v1"
PROMPT_SHARE = 0.9


def copy_logprobs(group: RolloutGroup, vocabulary: int) -> np.ndarray:
    """Return the log-probability of each sampled token in nats, float32 [N].

    A real teacher divides its logits by `group.temperature`, the sampling temperature, before the softmax.
    """
    prompt_tokens = np.unique(group.prompt_ids)
    other_tokens = max(1, vocabulary - len(prompt_tokens))
    is_copied = np.isin(group.response_ids, prompt_tokens)
    probabilities = np.where(is_copied, PROMPT_SHARE / len(prompt_tokens), (1 - PROMPT_SHARE) / other_tokens)
    logprobs: np.ndarray = np.log(probabilities).astype(np.float32)
    return logprobs


def application(*, token: str, tokenizer: str, vocabulary: int) -> FastAPI:
    """Return the server as an ASGI application.

    Args:
        token: bearer token that clients must send.
        tokenizer: fingerprint of the student's tokenizer; a student with another one is refused.
        vocabulary: number of entries of the student's vocabulary.
    """
    app = FastAPI(title="prompt-copy teacher")
    identity = TeacherIdentity(
        teacher=FINGERPRINT,
        tokenizer=tokenizer,
        engine="transformers",  # names the engine of rlad's own teachers that this one stands in for
        vocabulary=vocabulary,
        max_groups_per_client=0,  # unlimited
    )

    def require_token(request: Request) -> None:
        if not hmac.compare_digest(request.headers.get("Authorization", ""), f"Bearer {token}"):
            raise AccessError("the token is missing or wrong: send `Authorization: Bearer TOKEN`")

    # An error of rlad reaches the client as the same error: its name and message travel in the body.
    @app.exception_handler(RladError)
    async def answer_error(_: Request, error: RladError) -> JSONResponse:
        status, problem = problem_of(error)
        return JSONResponse(problem.model_dump(), status)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/teacher")
    async def teacher(request: Request) -> TeacherIdentity:
        require_token(request)
        return identity

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        require_token(request)
        scoring = ScoringRequest.from_bytes(await request.body())
        if scoring.tokenizer != tokenizer:
            raise VocabularyMismatchError(f"expected tokenizer {tokenizer}; the student has {scoring.tokenizer}")
        if scoring.support is not None:
            raise ContractError(f"this teacher scores sampled tokens only; got support {scoring.support!r}")
        group = scoring.group
        scores = TeacherScores(
            uid=group.uid, attempt=group.attempt, teacher=FINGERPRINT, logprobs=copy_logprobs(group, vocabulary)
        )
        return Response(scores_to_bytes(scores), media_type=MEDIA_TYPE)

    return app


@contextlib.asynccontextmanager
async def serving(app: FastAPI, port: int = 0) -> AsyncIterator[str]:
    """Serve an application on loopback until the block ends, and yield its URL. Port 0 takes a free port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def demonstrate() -> None:
    """Score one group over HTTP, as a run does."""
    token = "an-example-token-0123456789"
    app = application(token=token, tokenizer="example", vocabulary=100)
    async with (
        serving(app) as url,
        TeacherHttpClient(url, token=token, client="example", tokenizer="example") as teacher,
    ):
        print(f"teacher={(await teacher.identity()).teacher}")
        scores = await teacher.score(make_group([[7, 8, 50]], prompt=[7, 8]))
    print(f"logprobs={[round(value, 3) for value in scores.logprobs.tolist()]}")


async def serve_until_interrupted(port: int, tokenizer: str, vocabulary: int) -> None:
    """Serve a run's student until the process is interrupted."""
    app = application(token=os.environ["RLAD_TEACHER_TOKEN"], tokenizer=tokenizer, vocabulary=vocabulary)
    async with serving(app, port) as url:
        print(f"serving at {url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Score one group and stop; with --port, serve a run instead."""
    parser = argparse.ArgumentParser(description="Teacher that prefers the tokens of the prompt.")
    parser.add_argument("--port", type=int, help="Serve on this port until interrupted.")
    parser.add_argument("--tokenizer", default="example", help="Fingerprint of the student's tokenizer.")
    parser.add_argument("--vocabulary", type=int, default=100, help="Size of the student's vocabulary.")
    arguments = parser.parse_args()
    if arguments.port is None:
        asyncio.run(demonstrate())
    else:
        asyncio.run(serve_until_interrupted(arguments.port, arguments.tokenizer, arguments.vocabulary))


if __name__ == "__main__":
    main()
