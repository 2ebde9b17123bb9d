"""Ctrl-C to a program with a `PoolExecutor`, while that starts."""

from .program import Program


def test_ctrl_c_as_the_first_submit_starts_the_executor_leaves_no_thread(tmp_path):
    source = """
    executor = domains.PoolExecutor(1)
    began = threading.active_count()

    def interrupt(frame, event, argument):
        if frame.f_code is threading.Event.wait.__code__ and frame.f_back.f_code is threading.Thread.start.__code__:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(interrupt)
    try:
        executor.submit(abs, -1)
    except KeyboardInterrupt:
        say("interrupted")
    executor.shutdown()
    say(threading.active_count() - began)
    """
    with Program(source, tmp_path, "auto") as program:
        assert program.hear() == "interrupted"
        assert program.hear() == 0
        assert (program.wait(), program.errors) == (0, "")
        program.check_nothing_is_left()
