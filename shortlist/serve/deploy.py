"""The application under Ray Serve: replicas with the models, and a front for them."""

import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, final

from shortlist.engine import joined
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.serve.gate import FullError
from shortlist.serve.protection import HEADERS, RETRY_SECONDS, Message, Protection, Refusal, explained, problem, replay

SPARE = 2
"""How many times its own limit of requests Ray sends to a replica, so that a full replica can answer so itself."""
SCOPE = ("method", "path", "raw_path", "query_string", "headers", "root_path", "scheme", "http_version")
"""Parts of a request that are passed on, besides its body."""

Reply = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""


@final
class Replica:
    """A process with a copy of the models and the whole application."""

    def __init__(self, make_app: Callable[[], Protection]) -> None:
        self.app = make_app()

    async def answer(self, scope: dict[str, Any], body: bytes) -> Reply:
        """Answer a request with the application."""
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        await self.app({**scope, "type": "http"}, replay(body), send)
        head, *parts = messages
        return head["status"], list(head["headers"]), b"".join(part.get("body", b"") for part in parts)


@final
class Front:
    """Passes requests on to the replicas.

    It answers itself if the replica has died or all replicas are full.
    """

    def __init__(self, replicas: Any) -> None:
        self.replicas = replicas

    async def __call__(self, request: Any) -> Any:
        """Answer a Starlette request."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError
        from starlette.responses import Response

        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        try:
            status, headers, body = await self.replicas.answer.remote(scope, await request.body())
        except BackPressureError:
            return _response(explained(FullError("all replicas are busy", RETRY_SECONDS)))
        except RayActorError:
            message, wait = "the replica that worked on this has ended; try again.", str(RETRY_SECONDS)
            return _response(problem(503, "replica_lost", message, retry_after=wait))
        response = Response(body, status)
        response.raw_headers = headers
        return response


def _response(answer: Refusal | None) -> Any:
    from starlette.responses import Response

    assert answer is not None
    return Response(answer.body, answer.status, {**HEADERS, **answer.headers}, "application/json")


def application(make_app: Callable[[], Protection], *, replicas: int, queue_requests: int, drain_seconds: float) -> Any:
    """Build the replicas and the front for Ray Serve to deploy.

    Args:
        make_app: opens the application in the replica's process.
        replicas: number of replicas; each gets a GPU if the cluster has any.
        queue_requests: most requests that wait or are being processed in a replica.
        drain_seconds: longest time to finish accepted requests at the end.
    """
    ray, serve = import_module("ray"), import_module("ray.serve")
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    most = SPARE * queue_requests
    deployed = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=most,
        max_queued_requests=most,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        graceful_shutdown_timeout_s=drain_seconds,
    )(Replica)
    front = serve.deployment(max_ongoing_requests=most * replicas, ray_actor_options={"num_cpus": 0})(Front)
    return front.bind(deployed.bind(make_app))


def serve_on_ray(make_app: Callable[[], Protection], *, host: str, port: int, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; `application` takes the options.

    Raises:
        UserError: Ray or a part of it is missing, or no cluster answers.
    """
    ended = threading.Event()
    with joined():
        try:
            serve = import_module("ray.serve")
        except ModuleNotFoundError as error:
            raise UserError(f"--engine ray: {error}; pip install 'shortlist[dist]'.") from None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        serve.run(application(make_app, **options), name="shortlist")
        say(f"serve: ready on every node of the cluster, port {port}")
        ended.wait()
        serve.shutdown()
