"""The end of connections that clients keep: they are told before it comes.

A connection that is closed while a client sends its next request on it costs that request: the API server does not
send an admission twice. So each answer says from now on that it was the connection's last, and the client closes it;
only what nobody has used for a while is closed by us.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

FAREWELL_SECONDS = 0.5
"""Who has not used a connection for so long is not about to: busy clients use the one that they have used last."""
LOOK_SECONDS = 0.02
_LAST = (b"connection", b"close")


async def say_farewell(server: uvicorn.Server) -> None:
    """Tell whoever asks something that his connection ends; returns when nobody uses any, or after FAREWELL_SECONDS."""
    # What uvicorn sends with each answer; it makes the former out of the latter now and then.
    server.config.encoded_headers.append(_LAST)
    server.server_state.default_headers = [*server.server_state.default_headers, _LAST]
    loop = asyncio.get_running_loop()
    end = loop.time() + FAREWELL_SECONDS
    while (now := loop.time()) < end and any(  # noqa: ASYNC110 - nothing tells of it
        _is_used(connection, now, server.config.timeout_keep_alive) for connection in server.server_state.connections
    ):
        await asyncio.sleep(LOOK_SECONDS)


def _is_used(connection: Any, now: float, keep_alive: float) -> bool:
    """Whether a connection was used a moment ago: since then its keep-alive time runs."""
    waiting: asyncio.TimerHandle | None = connection.timeout_keep_alive_task
    return waiting is None or now - (waiting.when() - keep_alive) < FAREWELL_SECONDS
