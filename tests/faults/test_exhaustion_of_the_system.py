"""What the system runs out of fails the call that needed it, clearly; what already runs goes on."""

import signal

import pytest

from .limits import control_group, own_mount
from .program import Program

# Disks


def test_a_full_disk_fails_the_start_of_a_domain_over_zeromq_and_no_other(tmp_path):
    source = """
    async def main(env):
        async with env.domain_mgr.spawn() as domain:
            assert await domain.call(os.getpid) == domain.pid
            fill = [open(f"{os.environ['TMPDIR']}/{n}", "w").close() for n in range(100) if fits(n)]
            try:
                await env.domain_mgr.run(os.getpid)
            except DomainUnavailable as error:
                say(str(error))
            assert await domain.call(os.getpid) == domain.pid
            for n in range(100):
                if os.path.exists(f"{os.environ['TMPDIR']}/{n}"):
                    os.unlink(f"{os.environ['TMPDIR']}/{n}")
            await env.domain_mgr.run(os.getpid)

    def fits(n):
        status = os.statvfs(os.environ["TMPDIR"])
        return status.f_ffree > 0

    domains.run(main, link=LINK)
    say(os.listdir(os.environ["TMPDIR"]))
    """
    with Program(source, tmp_path, "zmq", mount="size=1m,nr_inodes=10") as program:
        assert "No space left" in program.hear()
        assert program.hear() == []
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


@pytest.mark.parametrize("free", [0, 1], ids=["nothing", "the directory alone"])
def test_a_disk_that_is_full_from_the_start_fails_what_needs_it_and_nothing_else(link, tmp_path, free):
    source = """
    async def use(resolver):
        resolver.resolve("by way of the parent")

    async def wait(promise):
        return await promise

    async def main(env):
        try:
            async with env.domain_mgr.spawn() as one, env.domain_mgr.spawn() as other, Switch() as sw:
                promise, resolver = await one.call(make)
                waiting = sw.fork_promise(one.call, wait, promise)
                await other.call(use, resolver)
                say(await waiting)
        except DomainUnavailable as error:
            say(str(error))

    async def make():
        return Promise.create()

    if sys.argv[2] == "0":
        open(os.environ["TMPDIR"] + "/the last one", "w").close()
    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link, str(free), mount="size=4k,nr_inodes=2") as program:
        if link == "zmq":
            assert "No space left" in program.hear()
        else:
            assert program.hear() == "by way of the parent"
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


def test_shared_memory_needs_no_room_in_dev_shm(link, tmp_path):
    source = """
    def length(data):
        return len(data)

    async def main(env):
        async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
            sizes = [size async for size in pool.map(length, [bytes(1 << 20)] * 20, weight=1.0)]
            say([sum(sizes), os.listdir("/dev/shm")])

    domains.run(main, link=LINK)
    """
    with Program(source, tmp_path, link, prefix=own_mount("/dev/shm", "size=4k,nr_inodes=1")) as program:
        assert program.hear() == [20 << 20, []]
        assert program.wait() == 0, program.errors
        program.check_nothing_is_left()


# Processes

CROWDED = """
GROUP = sys.argv[2]

async def echo(value):
    return value

def allow(how_many):
    with open(GROUP + "/pids.max", "w") as file:
        file.write(str(how_many))

def in_group():
    with open(GROUP + "/pids.current") as file:
        return int(file.read())
"""


def test_no_more_processes_fails_the_start_of_a_domain_and_leaves_the_others(link, tmp_path):
    source = """
async def main(env):
    async with env.domain_mgr.spawn() as domain:
        assert await domain.call(echo, 1) == 1
        allow(in_group())
        try:
            await env.domain_mgr.run(echo, 2)
        except DomainUnavailable as error:
            say(str(error))
        assert await domain.call(echo, 3) == 3
        allow("max")
        say(await env.domain_mgr.run(echo, 4))

domains.run(main, link=LINK)
"""
    with control_group("pids") as group:
        with Program(CROWDED + source, tmp_path, link, str(group.path), prefix=group.prefix) as program:
            assert "cannot fork" in program.hear()
            assert program.hear() == 4
            assert program.wait() == 0, program.errors
            program.check_nothing_is_left()


def test_no_process_for_the_launcher_is_told_at_the_first_domain_and_may_pass(link, tmp_path):
    source = """
async def main(env):
    try:
        await env.domain_mgr.run(echo, 1)
    except DomainUnavailable as error:
        say(str(error))
    allow("max")
    say(await env.domain_mgr.run(echo, 2))

allow(in_group())
domains.run(main, link=LINK)
"""
    with control_group("pids") as group:
        with Program(CROWDED + source, tmp_path, link, str(group.path), prefix=group.prefix) as program:
            why = program.hear()
            assert "could not be started" in why
            assert "Resource temporarily unavailable" in why or "thread" in why
            assert program.hear() == 2
            assert program.wait() == 0, program.errors
            program.check_nothing_is_left()


def test_a_pool_that_may_have_no_more_processes_goes_on_with_those_that_it_has(link, tmp_path):
    source = """
async def main(env):
    async with ExecutorPool(env.domain_mgr, domain_count=2) as pool:
        await pool.ready()
        victim, other = [domain.pid for domain in pool.stats().domains]
        allow(in_group() - 1)
        os.kill(victim, signal.SIGKILL)
        while len(pool.stats().domains) == 2:
            await fiber.yield_now()
        say(await pool.submit(os.getpid, weight=1.0) == other)

domains.run(main, link=LINK)
"""
    with control_group("pids") as group:
        with Program(CROWDED + source, tmp_path, link, str(group.path), prefix=group.prefix) as program:
            assert program.hear() is True
            assert program.wait() == 0, program.errors
            program.check_nothing_is_left()


# Memory


def test_a_domain_that_a_control_group_kills_for_its_memory_dies_alone(link, tmp_path):
    source = """
    GROUP = sys.argv[2]

    def join():
        with open(GROUP + "/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    def allocate(size):
        return len(bytearray(b"x") * size)

    async def main(env):
        async with env.domain_mgr.spawn() as domain, env.domain_mgr.spawn() as other:
            await domain.call(join)
            try:
                await domain.call(allocate, 1 << 28)
            except DomainDied as death:
                say(death.signal)
            say(await other.call(allocate, 1 << 20))

    domains.run(main, link=LINK)
    """
    with control_group("memory") as group:
        group.path.joinpath("memory.limit_in_bytes").write_text(str(1 << 27))
        with Program(source, tmp_path, link, str(group.path)) as program:
            assert program.hear() == signal.SIGKILL
            assert program.hear() == 1 << 20
            assert program.wait() == 0, program.errors
            program.check_nothing_is_left()
