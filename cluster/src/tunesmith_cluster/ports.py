"""Who listens on a port: an old process holding one is the usual reason why a component dies at once."""

from __future__ import annotations

import os
import socket
import struct
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket."""

    address: str
    port: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port."""

    port: int
    pid: int | None
    """None when the process is not visible to us."""
    command: str


def parse_listeners(table: str) -> list[Listener]:
    """The listening sockets in the text of /proc/net/tcp or /proc/net/tcp6."""
    listeners = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        address, port = fields[1].split(":")
        if fields[3] == _LISTEN:
            listeners.append(Listener(_decode_address(address), int(port, 16), int(fields[9])))
    return listeners


def conflicts(wanted: Iterable[tuple[str, int]], listeners: Iterable[Listener]) -> list[Listener]:
    """The listeners that would keep us from binding one of the wanted (address, port) pairs."""
    pairs = set(wanted)
    return [
        listener
        for listener in listeners
        if any(
            port == listener.port and (listener.address == address or listener.address in ("0.0.0.0", "::"))
            for address, port in pairs
        )
    ]


def holders(wanted: Iterable[tuple[str, int]]) -> list[Holder]:
    """The processes that hold one of the wanted (address, port) pairs."""
    listeners: list[Listener] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            listeners += parse_listeners(Path(table).read_text(encoding="ascii"))
    found = conflicts(wanted, listeners)
    owners = _owners({listener.inode for listener in found})
    return [
        Holder(listener.port, owners.get(listener.inode), _command(owners.get(listener.inode))) for listener in found
    ]


def _decode_address(text: str) -> str:
    # The kernel prints 32-bit words in the machine's own byte order.
    raw = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _owners(inodes: set[int]) -> dict[int, int]:
    """Which process has which socket open."""
    owners: dict[int, int] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        try:
            for descriptor in (process / "fd").iterdir():
                inode = wanted.get(os.readlink(descriptor))
                if inode is not None:
                    owners[inode] = int(process.name)
        except OSError:
            continue  # ended meanwhile
    return owners


def _command(pid: int | None) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return textwrap.shorten(words, 120, placeholder=" …")
    except OSError:
        return "unknown"
