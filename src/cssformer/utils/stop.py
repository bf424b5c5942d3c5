"""Stopping from outside: Ctrl-C and termination signals, to one process or to all of a training at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cssformer.utils.errors import UserError

SIGNALS = {signal.SIGINT, signal.SIGTERM, *({signal.SIGHUP} if hasattr(signal, "SIGHUP") else ())}


GRACE_SECONDS = 60.0
"""How long several devices may take to stop together."""


class Interrupted(Exception):
    """Somebody asked to stop; a training can be resumed."""

    def __init__(self, number: int | None, step: int = 0) -> None:
        super().__init__("Interrupted.")
        self.code = 130 if number == signal.SIGINT else 143
        """The exit code that shells know for it."""
        self.step = step
        """How many steps the checkpoint holds; 0 without one."""


class Stop:
    """Whether, and by which signal, somebody asked to stop.

    Outside of :meth:`patience` a signal stops at once. Within, it is only noted, for the end of an optimiser step to
    obey; a second Ctrl-C, at least a second later, does not wait for that.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.step = 0
        """Of the last checkpoint."""
        self.patient = False
        self.give_up: Callable[[], None] | None = None
        """Called if a noted stop is not obeyed within ``GRACE_SECONDS``."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen within the block, which raises Interrupted if it is stopped.

        Only the main thread hears signals. A hang-up that somebody chose to ignore (nohup) stays ignored.
        """
        heard = set() if threading.current_thread() is not threading.main_thread() else SIGNALS
        self.heard = {each for each in heard if each == signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN}
        before = {number: signal.getsignal(number) for number in self.heard}
        self._listen()
        try:
            yield
        except BaseException as error:
            # Lightning and half-done imports make other errors of a KeyboardInterrupt.
            if self.number is None or isinstance(error, UserError):
                raise
            raise Interrupted(self.number, self.step) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Only note signals; until :meth:`ready` they are kept, also by the processes that are begun meanwhile."""
        self.patient = True
        self._obey()
        try:
            with signals_later():
                yield
        finally:
            self.patient = False
        self._obey()

    def _obey(self) -> None:
        if self.number is not None:
            raise Interrupted(self.number, self.step)

    def ready(self) -> None:
        """Steps follow, whose ends look at ``number``."""
        # Lightning has taken SIGTERM, and would speak to the other devices from within the handler.
        self._listen()
        if self.heard and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.heard)

    def _listen(self) -> None:
        for number in self.heard:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.number is not None
        if not again:
            self.number, self.since = number, time.monotonic()
            if self.give_up is not None:
                timer = threading.Timer(GRACE_SECONDS, self.give_up)
                timer.daemon = True
                timer.start()
        # The two signals of a program and its group, or of an impatient shell, are one wish.
        elif time.monotonic() - self.since < 1 or (self.patient and number != signal.SIGINT):
            return
        if again or not self.patient:
            raise KeyboardInterrupt


@contextmanager
def signals_later() -> Iterator[None]:
    """Keep signals for the end of the block; processes begun within it go on keeping them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone(_: Any = None) -> None:
    """For a loader's process, begun in :func:`signals_later`: signals to the whole group are its parent's to obey.

    It ends when the parent tells it to, or has ended.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            if hasattr(signal, "sigtimedwait"):
                heard = signal.sigtimedwait(SIGNALS, 1)
                if heard and heard.si_pid == parent:
                    break
            else:
                time.sleep(1)
        os._exit(0)

    if hasattr(signal, "pthread_sigmask") and not hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=watch, daemon=True).start()
