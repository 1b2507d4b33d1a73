"""A network that fails on demand: passes bytes on to a server, late, not at all, or hangs up."""

import asyncio
import contextlib
import threading
from typing import Self


class Proxy:
    """Listens on `port` of 127.0.0.1 for the server at the Unix socket `target`; a context manager.

    `latency` is added to every piece that comes, in seconds.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.latency = 0.0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._passing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self.mend()
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def mend(self) -> None:
        """Listen, and pass everything on, what was swallowed first."""
        self._do(self._mend())

    def swallow(self) -> None:
        """Take connections and bytes, and pass nothing on: the other side cannot tell that from a slow server."""
        self._do(self._swallow())

    def hang_up(self) -> None:
        """End all connections; new ones are taken."""
        self._do(self._hang_up())

    def go_down(self) -> None:
        """End all connections and refuse new ones."""
        self._do(self._go_down())

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _mend(self) -> None:
        self._passing.set()
        if self._server is None or not self._server.is_serving():
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _swallow(self) -> None:
        self._passing.clear()

    async def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _go_down(self) -> None:
        if self._server is not None:
            self._server.close()
        self._passing.set()
        await self._hang_up()

    async def _end(self) -> None:
        await self._go_down()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()} or {asyncio.create_task(asyncio.sleep(0))})
        # Transports close in the round after.
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._passing.wait()
            there, back = await asyncio.open_unix_connection(self.target)
            self._writers.add(back)
            try:
                await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
            finally:
                self._writers.discard(back)
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                await asyncio.sleep(self.latency)
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
