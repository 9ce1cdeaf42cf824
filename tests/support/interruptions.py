"""Raises an exception between any two steps of the interpreter, as Ctrl-C does."""

import contextlib
import sys
import threading

PATIENCE = 60


def steps_of(work, watched):
    """How many steps ``work`` takes in frames that ``watched`` accepts by their file name."""
    counter = _Tracer(None, watched, KeyboardInterrupt)
    counter.run(work)
    return counter.steps


def interrupt(work, at, watched, error=KeyboardInterrupt):
    """Run ``work`` and raise ``error`` before the step number ``at``; whether the work was interrupted."""
    tracer = _Tracer(at, watched, error)
    with contextlib.suppress(error):
        tracer.run(work)
    return tracer.steps > at


class _Tracer:
    def __init__(self, at, watched, error):
        self.at, self.watched, self.error = at, watched, error
        self.steps = 0

    def run(self, work):
        # In a thread of its own, since a debugger or a coverage tool may trace this one.
        outcome = []

        def traced():
            sys.settrace(self.enter)
            try:
                work()
            except BaseException as error:
                outcome.append(error)
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=traced)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        if outcome:
            raise outcome[0]

    def enter(self, frame, event, argument):
        if self.watched(frame.f_code.co_filename):
            frame.f_trace_opcodes = True
            return self.step
        return None

    def step(self, frame, event, argument):
        if event == "opcode":
            self.steps += 1
            if self.steps - 1 == self.at:
                raise self.error
        return self.step
