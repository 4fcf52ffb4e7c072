"""Carries TCP connections from a free port of this machine, which it prints, to HOST:PORT."""

from __future__ import annotations

import asyncio
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end."""
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def main(host: str, port: int) -> None:
    """Serve for ever."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


host, port = sys.argv[1].rsplit(":", 1)
asyncio.run(main(host, int(port)))
