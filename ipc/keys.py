"""CURVE keys for ZeroMQ links: made anew for every run, and never written anywhere.

They travel only through inherited sockets that nobody else has, so holding one is proof of belonging to the run.
"""

from __future__ import annotations

from typing import NamedTuple

import zmq

__all__ = ["KeyPair", "new_key_pair"]


class KeyPair(NamedTuple):
    """Both halves in Z85 text, as ZeroMQ takes them."""

    public: bytes
    secret: bytes


def new_key_pair() -> KeyPair:
    """A fresh pair, from libzmq's own generator."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)
