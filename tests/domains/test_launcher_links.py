"""The kinds of link between a parent and its domain."""

import os
import stat

from domains.launcher.links import ZeroMQKind


def test_the_directory_for_sockets_is_made_after_it_can_be_said_what_to_remove():
    kind = ZeroMQKind()
    (path,) = kind.remains()
    assert not os.path.exists(path)
    assert kind.remains() == [path]
    assert kind.new_address() == f"ipc://{path}/1"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    kind.close()
    assert not os.path.exists(path)


def test_after_it_was_removed_another_directory_is_used():
    kind = ZeroMQKind()
    (first,) = kind.remains()
    kind.new_address()
    kind.clear()
    assert not os.path.exists(first)
    (second,) = kind.remains()
    assert second != first
    kind.close()
