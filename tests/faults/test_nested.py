"""A domain starts domains of its own; the tree dies from its root, and no other."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

import domains
from domains import DomainDied, ExecutorPool

from .program import Program, wait_until_gone


def test_a_job_runs_a_program_with_domains_of_its_own(link):
    def inner():
        async def main(env):
            async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
                pids = {pid async for pid in pool.map(_pid, range(20), weight=1.0, chunk=1)}
                return domains.current().name, pids | {os.getpid()}, await pool.submit(domains.current, weight=1.0)

        return domains.run(main, link=link)

    async def main(env):
        name, pids, innermost = await env.domain_mgr.run(inner)
        assert name == "domain-1"
        assert os.getpid() not in pids
        assert innermost.name.startswith("domain-1.")
        assert not wait_until_gone(pids, 5.0)

    domains.run(main, link=link)


def _pid(_):
    return os.getpid()


TREE = """
def grow(depth):
    say(os.getpid())
    if depth == 0:
        spin()

    async def main(env):
        async with env.domain_mgr.spawn() as domain, Switch() as sw:
            for _ in range(2):
                sw.fork(env.domain_mgr.run, grow, depth - 1)
            sw.fork(domain.call, spin)

    domains.run(main, link=LINK)

async def main(env):
    await env.domain_mgr.run(grow, 2)

domains.run(main, link=LINK)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_the_tree_dies_from_its_root(link, tmp_path, number):
    with Program(TREE.replace("LINK", repr(link)), tmp_path, link) as program:
        told = {program.hear() for _ in range(1 + 2 + 4)}
        assert told < program.processes()
        program.send_signal(number)
        program.wait()
        program.check_nothing_is_left()  # all levels begin to part at the same time


def test_a_branch_that_dies_takes_its_own_domains_with_it_and_no_others(link):
    def grow(path):
        async def main(env):
            async with env.domain_mgr.spawn() as domain:
                pid = await domain.call(os.getpid)
                await domains.run_in_thread(Path(path).write_text, str(pid))
                await domain.call(_spin)

        domains.run(main, link=link)

    async def main(env, path):
        async with env.domain_mgr.spawn() as branch, env.domain_mgr.spawn() as other, domains.Switch() as sw:
            growing = sw.fork_promise(branch.call, grow, path)
            leaf = int(await domains.run_in_thread(Path(path).read_text))
            os.kill(branch.pid, signal.SIGKILL)
            with pytest.raises(DomainDied):
                await growing
            assert not wait_until_gone([leaf], 1.0)
            assert await other.call(os.getpid) == other.pid

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "fifo")
        os.mkfifo(path)
        domains.run(lambda env: main(env, path), link=link)


def _spin():
    while True:
        pass
