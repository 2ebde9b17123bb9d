"""ZeroMQ as one loop of one process uses it: its sockets, and who may connect to which of those that are bound.

ZeroMQ ends the process where it gets no descriptor for its own use, so that there are enough is seen to before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import cast

import zmq
from zmq.utils import z85

from domains.errors import DomainUnavailable

__all__ = ["ZeroMQContext", "events"]

_FRAMES_IN_QUEUE = 16
"""How many frames ZeroMQ may hold on either side of a link."""

_HANDSHAKE_MS = 10_000
"""How long one who connects from anywhere may take to show its key, and this loop to check it.

There is no such limit on one machine, where only this user's processes can connect: a link must open however long one
of its ends has been busy, for it connects only once.
"""

_RECONNECT_MS = 3_600_000
"""Longer than a link outlives its connection. Told not to reconnect, libzmq drops what has come and was not read."""


_CONTEXT_DESCRIPTORS = 12
_LINK_DESCRIPTORS = 8
"""More than libzmq opens at once, for its threads and for a socket with its monitor, listener and connection."""


class ZeroMQContext:
    """ZeroMQ as one loop of one process uses it: its context, and who may connect to which bound link.

    Made lazily, never before a fork. The check of the keys is a small service that libzmq asks (ZAP, RFC 27).
    """

    def __init__(self) -> None:
        """Raises DomainUnavailable where ZeroMQ cannot have what it needs."""
        _check_descriptors(_CONTEXT_DESCRIPTORS)
        self._context = zmq.Context()
        self._allowed: dict[bytes, bytes] = {}
        self._gate = self._context.socket(zmq.ROUTER)
        self._gate.linger = 0
        self._gate.bind("inproc://zeromq.zap.01")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._gate.fileno(), self.check_keys)

    def socket(self, address: str) -> zmq.Socket[bytes]:
        """One end of a link at that address. Raises DomainUnavailable if there can be none."""
        _check_descriptors(_LINK_DESCRIPTORS)
        made = self._context.socket(zmq.PAIR)
        made.sndhwm = made.rcvhwm = _FRAMES_IN_QUEUE
        made.linger = 0
        made.setsockopt(zmq.HANDSHAKE_IVL, 0 if address.startswith("ipc://") else _HANDSHAKE_MS)
        made.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        return made

    def allow(self, endpoint: bytes, client_public: bytes) -> None:
        """Let this client, and no other, connect to the link that is bound as `endpoint`."""
        self._allowed[endpoint] = z85.decode(client_public)

    def disallow(self, endpoint: bytes) -> None:
        self._allowed.pop(endpoint, None)

    @property
    def gate(self) -> int:
        """The descriptor that tells of somebody at the gate."""
        return self._gate.fileno()

    def check_keys(self) -> None:
        """Let in, or turn away, those who are at the gate."""
        gate = self._gate
        while events(gate) & zmq.POLLIN:
            sender, empty, version, request, domain, _, _, mechanism, *credentials = gate.recv_multipart()
            allowed = self._allowed.get(domain)
            good = mechanism == b"CURVE" and allowed is not None and credentials == [allowed]
            status = [b"200", b"OK"] if good else [b"400", b"this key is not expected here"]
            gate.send_multipart([sender, empty, version, request, *status, b"", b""])

    def close(self) -> None:
        """Release it. Waits, for what was said last on links that are gone, at most their linger time.

        Links that are not are cut: ZeroMQ would wait for them for ever, here or in the collector of garbage.
        """
        self._loop.remove_reader(self._gate.fileno())
        self._context.destroy(linger=0)


def _check_descriptors(count: int) -> None:
    """See that so many more can be opened: where libzmq gets none for its own use it ends the process."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise DomainUnavailable(f"there is nothing to open a ZeroMQ link with: {error}") from error


def events(connection: zmq.Socket[bytes]) -> int:
    """What a socket can do now; asking also takes note of what its descriptor told."""
    return cast(int, connection.getsockopt(zmq.EVENTS))
