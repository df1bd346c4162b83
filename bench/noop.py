"""A handler that allows whatever it is asked, on the webhook's own server: what the webhook is held against."""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from at_least_semaphore_pod_hook.admission import review
from at_least_semaphore_pod_hook.admission.handler import Answer, Decision
from at_least_semaphore_pod_hook.server.app import admission_app
from at_least_semaphore_pod_hook.server.certificates import ServingCertificate
from at_least_semaphore_pod_hook.server.run import make_server


class NoopHandler:
    """Reads the review, as any handler must, and allows it."""

    async def handle(self, body: bytes, _timeout: float) -> Answer:
        """Allow."""
        return Answer(Decision.ALLOWED, 200, review.allowed(review.decode_review(body).uid))


def main() -> None:
    """Serve on --port with the certificate in --cert-dir until ended by a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert-dir", required=True)
    flags = parser.parse_args()
    certificate = ServingCertificate(flags.cert_dir)
    certificate.load()

    async def serve() -> None:
        await make_server(admission_app(NoopHandler()), "127.0.0.1", flags.port, certificate.context).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
