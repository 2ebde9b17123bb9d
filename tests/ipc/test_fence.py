"""The fence."""

import os

from domains.ipc.fence import fence_lock


def test_a_fork_while_another_thread_is_at_the_fence_does_not_close_it_for_the_child() -> None:
    with fence_lock:  # stands for the other thread
        pid = os.fork()
        if not pid:
            os._exit(fence_lock.locked())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
