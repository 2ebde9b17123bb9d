"""Ctrl-C to a program with a `PoolExecutor`, while that starts and while a block waits for it."""

from .program import Program

WATCH = """
    def joins(frame):
        return frame is not None and (frame.f_code.co_name == "join" or joins(frame.f_back))

    def watch():
        # Say when the main thread waits for an executor's thread.
        while not joins(sys._current_frames().get(threading.main_thread().ident)):
            time.sleep(0.001)
        say("waits")

    def work():
        try:
            say("works")
            spin()
        finally:
            say("cancelled")

    threading.Thread(target=watch, daemon=True).start()
    executor = domains.PoolExecutor(1)
"""


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


def test_ctrl_c_as_a_block_waits_for_its_jobs_cancels_them(tmp_path):
    source = """
    try:
        with executor:
            future = executor.submit(work)
    except KeyboardInterrupt:
        say(future.cancelled())
    """
    with Program(WATCH + source, tmp_path, "auto") as program:
        assert {program.hear(), program.hear()} == {"works", "waits"}
        program.interrupt_group()
        assert [program.hear(), program.hear()] == ["cancelled", True]
        assert (program.wait(), program.errors) == (0, "")
        program.check_nothing_is_left()
