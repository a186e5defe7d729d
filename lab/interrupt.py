"""Turns Ctrl-C and similar signals into one exception, after which the lab is taken down."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `KeyboardInterrupt`, and ignore the rest.

    So a second Ctrl-C does not stop a lab from being taken down completely.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for ignored in _SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
