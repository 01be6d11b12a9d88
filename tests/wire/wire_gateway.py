"""The gateway of the loopback Discord: sessions that can be resumed, heartbeats, dispatches."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.wire.wire_state import JSON

DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 0, 1, 2, 6, 7, 9, 10, 11
_AUTHENTICATION_FAILED, _NOT_AUTHENTICATED, _DECODE_ERROR = 4004, 4003, 4002


@dataclass
class Session:
    """What was dispatched to one IDENTIFY, so that a RESUME gets what it missed."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    events: list[JSON] = field(default_factory=list)
    connection: Connection | None = None
    is_valid: bool = True

    async def dispatch(self, event: str, data: Any) -> None:
        frame = {"op": DISPATCH, "t": event, "s": len(self.events) + 1, "d": data}
        self.events.append(frame)
        if self.connection is not None:
            await self.connection.send(frame)


@dataclass(eq=False)
class Connection:
    """One websocket; compressed as the bot asks for it."""

    socket: web.WebSocketResponse
    request: web.Request
    compressor: Any = None

    async def send(self, frame: JSON) -> None:
        text = json.dumps(frame)
        try:
            if self.compressor is None:
                await self.socket.send_str(text)
            else:
                data = self.compressor.compress(text.encode()) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
                await self.socket.send_bytes(data)
        except (ConnectionError, RuntimeError):
            # It is being closed; the session keeps the frame.
            return

    def abort(self) -> None:
        """Cut the connection without a close frame."""
        if self.request.transport is not None:
            self.request.transport.abort()


class Gateway:
    """Answers `/gateway`; `ready` makes the payload of READY and what follows it."""

    def __init__(self, token: Callable[[], str], ready: Callable[[], tuple[JSON, list[JSON]]]) -> None:
        self._token = token
        self._ready = ready
        self.heartbeat_interval_s = 41.25
        #: Heartbeats are not acknowledged: the bot must notice and connect again.
        self.is_mute = False
        #: New websockets are refused with this status.
        self.refuse_status = 0
        self.sessions: list[Session] = []
        self.connections: list[Connection] = []
        #: Times of IDENTIFY and RESUME, and heartbeats.
        self.identified_at: list[float] = []
        self.resumed_at: list[float] = []
        self.heartbeats = 0

    @property
    def is_connected(self) -> bool:
        """True if a bot has identified itself or resumed, and is still there."""
        return any(session.connection is not None for session in self.sessions)

    # -- what a test may do -----------------------------------------------------------------------------------------

    async def dispatch(self, event: str, data: Any) -> None:
        """Dispatch an event, as it is, to every session that is valid, connected or not."""
        for session in self.sessions:
            if session.is_valid:
                await session.dispatch(event, data)

    def cut(self) -> None:
        """Cut all connections; sessions can be resumed."""
        for connection in list(self.connections):
            connection.abort()

    async def close(self, code: int, *, is_resumable: bool = True) -> None:
        """Close all connections with a code."""
        for connection in list(self.connections):
            await connection.socket.close(code=code)
        if not is_resumable:
            self.forget_sessions()

    async def ask_reconnect(self) -> None:
        """Send RECONNECT."""
        for connection in list(self.connections):
            await connection.send({"op": RECONNECT, "d": None})

    async def invalidate(self, *, is_resumable: bool = False) -> None:
        """Send INVALID_SESSION."""
        if not is_resumable:
            self.forget_sessions()
        for connection in list(self.connections):
            await connection.send({"op": INVALID_SESSION, "d": is_resumable})

    def forget_sessions(self) -> None:
        """A RESUME is answered by INVALID_SESSION from now on."""
        for session in self.sessions:
            session.is_valid = False

    # -- the protocol -----------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one websocket to its end."""
        if self.refuse_status:
            return web.Response(status=self.refuse_status)
        socket = web.WebSocketResponse(autoping=True, compress=False)
        await socket.prepare(request)
        is_zlib = request.query.get("compress") == "zlib-stream"
        connection = Connection(socket, request, zlib.compressobj() if is_zlib else None)
        self.connections.append(connection)
        session: Session | None = None
        try:
            await connection.send({"op": HELLO, "d": {"heartbeat_interval": int(self.heartbeat_interval_s * 1000)}})
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                session = await self._take(connection, session, message.data)
        finally:
            self.connections.remove(connection)
            if session is not None and session.connection is connection:
                session.connection = None
        return socket

    async def _take(self, connection: Connection, session: Session | None, text: str) -> Session | None:
        try:
            frame = json.loads(text)
            op, data = frame["op"], frame.get("d")
        except (ValueError, KeyError, TypeError):
            await connection.socket.close(code=_DECODE_ERROR)
            return session
        if op == HEARTBEAT:
            self.heartbeats += 1
            if not self.is_mute:
                await connection.send({"op": HEARTBEAT_ACK})
        elif op in {IDENTIFY, RESUME} and data["token"].removeprefix("Bot ") != self._token():
            await connection.socket.close(code=_AUTHENTICATION_FAILED)
        elif op == IDENTIFY:
            return await self._identify(connection)
        elif op == RESUME:
            return await self._resume(connection, data)
        elif session is None:
            await connection.socket.close(code=_NOT_AUTHENTICATED)
        return session

    async def _identify(self, connection: Connection) -> Session:
        self.forget_sessions()
        session = Session(connection=connection)
        self.sessions.append(session)
        self.identified_at.append(time.time())
        ready, guilds = self._ready()
        await session.dispatch("READY", {**ready, "session_id": session.id})
        for guild in guilds:
            await session.dispatch("GUILD_CREATE", guild)
        return session

    async def _resume(self, connection: Connection, data: JSON) -> Session | None:
        session = next((each for each in self.sessions if each.id == data["session_id"] and each.is_valid), None)
        if session is None:
            await connection.send({"op": INVALID_SESSION, "d": False})
            return None
        self.resumed_at.append(time.time())
        replayed = data["seq"]
        while replayed < len(session.events):
            await connection.send(session.events[replayed])
            replayed += 1
        session.connection = connection
        await session.dispatch("RESUMED", {})
        return session

    async def stop(self) -> None:
        """Close everything."""
        for connection in list(self.connections):
            connection.abort()
        # Their handlers end in the next turns of the loop.
        await asyncio.sleep(0)
