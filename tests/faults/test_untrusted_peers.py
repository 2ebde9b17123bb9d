"""A domain that sends what it must not is one that died, for its callers; its parent and the others go on."""

import gc
import os

import pytest

import domains
from domains import DomainDied, ExecutorPool, fiber
from domains.ipc.frames import frame_header
from domains.ipc.link import Link
from domains.ipc.socketpair import SocketPairLink
from domains.job_runner import JobRunner
from domains.protocol import Finish, Introduce, JobRaised, JobReturned, ProtocolCodec, StartJob


class _Trap:
    """Opened anywhere, it would end the process that opens it."""

    def __reduce__(self):
        return os._exit, (99,)


def _frame(envelope, *buffers):
    views = [memoryview(buffer) for buffer in buffers]
    return frame_header(envelope, views) + envelope, *buffers


def _messages(*messages):
    return ProtocolCodec().encode(list(messages))


def _pickled_trap():
    import pickle

    return pickle.dumps(_Trap())


_WHOLE = _frame(_messages(JobReturned(1, b"", 0.0, 0)))[0]

WORDS = {
    "text": (b"GET / HTTP/1.1\r\n\r\n",),
    "zeros": (bytes(64),),
    "a wrong checksum": (_WHOLE[:12] + bytes(4) + _WHOLE[16:],),
    "a wrong length": (_WHOLE[:7] + b"\xff" + _WHOLE[8:],),
    "a frame cut short, and another": (_WHOLE[:-3] + _WHOLE,),
    "no msgpack": _frame(b"\xc1"),
    "another shape": _frame(b"\x81\x01\x02"),
    "nested without end": _frame(b"\x91" * 100_000),
    "a pickle in place of messages": _frame(_pickled_trap()),
    "a message for a domain": _frame(_messages(StartJob(1, 1, _pickled_trap(), 0, {}, 0, False))),
    "another message for a domain": _frame(_messages(Finish())),
    "an answer to nobody": _frame(_messages(JobReturned(2**62, _pickled_trap(), 0.0, 0))),
    "a negative count of buffers": _frame(_messages(JobReturned(1, b"", 0.0, -1)), b"buffer"),
    "more buffers than there are": _frame(_messages(JobReturned(1, b"", 0.0, 9)), b"buffer"),
    "a buffer where there are none": _frame(_messages(JobReturned(1, b"", 0.0, 1))),
    "good words, then bad ones": (_frame(_messages(Introduce(5)))[0] + b"dm".ljust(16),),
}


async def _say(parts):
    """Send bytes by this domain's own link, behind the back of everything that sees to what is sent."""
    (link,) = [each for each in gc.get_objects() if isinstance(each, Link) and each.is_open]
    link.flush()
    if isinstance(link, SocketPairLink):
        link._socket.setblocking(True)
        link._socket.sendall(b"".join(parts))
        link._socket.setblocking(False)
    else:
        link._socket.send(b"".join(parts))
    await fiber.await_cancel()


async def _pid():
    return os.getpid()


@pytest.mark.parametrize("words", list(WORDS))
def test_a_domain_that_sends_what_it_must_not_has_died_for_its_callers_alone(link, words):
    async def main(env):
        async with env.domain_mgr.spawn() as bad, env.domain_mgr.spawn() as good:
            with pytest.raises(DomainDied):
                await bad.call(_say, WORDS[words])
            assert await good.call(_pid) == good.pid

    domains.run(main, link=link)


async def _answer_oddly():
    """Say of this very job that it has raised what nobody can read."""
    (runner,) = [each for each in gc.get_objects() if isinstance(each, JobRunner)]
    (job,) = runner._running
    runner._conversation.send(JobRaised(job, b"no failure", 0.0, 0))
    await fiber.await_cancel()


def test_an_answer_that_cannot_be_dealt_with_leaves_nobody_waiting(link):
    async def main(env):
        with domains.timeout(30):
            async with env.domain_mgr.spawn("odd") as domain:
                with pytest.raises(DomainDied, match="JobRaised from domain 'odd' was refused"):
                    await domain.call(_answer_oddly)

    domains.run(main, link=link)


def test_a_pool_replaces_a_domain_that_sends_what_it_must_not(link):
    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=1) as pool:
            bad = await pool.submit(_pid, weight=1.0)
            with pytest.raises(DomainDied):
                await pool.submit(_say, WORDS["text"], weight=1.0)
            assert await pool.submit(_pid, weight=1.0) != bad

    domains.run(main, link=link)
