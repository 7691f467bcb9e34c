"""A TCP proxy on the loopback that loses connections when it is told to."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

CHUNK = 65536  # bytes that are passed on at once
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection

T = TypeVar("T")


class FlakyProxy:
    """Passes connections on to a port of the loopback, while the context lasts.

    Args:
        target_port: Where they go.

    Attributes:
        port: Where it listens.
        endpoint: The same as an address.
        connections: How many connections it has taken.
        cuts: How many of them it has reset.
        passed: Bytes of answers that it has passed on.
    """

    def __init__(self, target_port: int) -> None:
        self.connections = 0
        self.cuts = 0
        self.passed = 0
        self._target_port = target_port
        self._after = 0
        self._left = 0
        self._order = 0  # of the last cut(): bytes count anew with each
        self._silent = False
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        """Its address, to be used in place of the server's."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, after: int, times: int) -> None:
        """Reset the next connections in the middle of an answer.

        Args:
            after: How many more bytes of answers a connection passes on, an open one too.
            times: How many connections.
        """

        def order() -> None:
            self._after, self._left = after, times
            self._order += 1

        self._call(order)

    def silence(self) -> None:
        """Take connections but pass on no answer, as a server that hangs, until accept()."""
        self._call(lambda: setattr(self, "_silent", True))

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as a server that died, until accept()."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            tasks = list(self._open)
            for task, writer in list(self._open.items()):
                self._reset(writer)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()

    def accept(self) -> None:
        """Take connections and pass everything on again, at the same port."""

        async def begin() -> None:
            self._silent = False
            self._left = 0
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
                self.port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            # Both ends may go whenever they like; that is what the proxy is for.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._pass_on(reader, writer)
        finally:
            del self._open[task]
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._target_port)
        pumps = [
            asyncio.create_task(self._pass_requests(reader, requests)),
            asyncio.create_task(self._pass_answers(answers, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            requests.close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, requests: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            requests.write(data)
            await requests.drain()

    async def _pass_answers(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        order, passed = self._order, 0
        while data := await answers.read(CHUNK):
            if self._silent:
                continue
            if order != self._order:
                order, passed = self._order, 0
            is_cut = self._left > 0 and passed + len(data) >= self._after
            if is_cut:
                data = data[: self._after - passed]
                self._left -= 1
                self.cuts += 1
            writer.write(data)
            await writer.drain()
            passed += len(data)
            self.passed += len(data)
            if is_cut:
                await asyncio.sleep(0.05)  # a reset takes away what the client has not read yet
                self._reset(writer)
                return

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
