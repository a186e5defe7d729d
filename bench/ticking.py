"""The controller with a clock on its event loop, which sees how late the loop does what is due.

    python -m bench.ticking FILE CONTROLLER-ARGUMENTS

Each `PERIOD` the clock notes how late it is. FILE has records (`RECORD`): when it was due and how
late it was, both in seconds of `time.monotonic`. A loop that is held for a second is late for each
tick of it.
"""

import asyncio
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

PERIOD: Final = 0.005
RECORD: Final = struct.Struct("dd")
_FLUSH: Final = 200
"""Records that are written at once."""


class _Clock:
    def __init__(self, loop: asyncio.AbstractEventLoop, file: BinaryIO) -> None:
        self._loop, self._file = loop, file
        self._records: list[bytes] = []
        self._due = time.monotonic() + PERIOD
        loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        while self._due <= now:
            self._records.append(RECORD.pack(self._due, now - self._due))
            self._due += PERIOD
        if len(self._records) >= _FLUSH:
            self._file.write(b"".join(self._records))
            self._records.clear()
        self._loop.call_at(self._due, self._tick)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        _Clock(loop, self._file)
        return loop


def lags(path: Path, begin: float, end: float) -> Iterator[float]:
    """Seconds that the loop was late, at each tick between two moments."""
    content = path.read_bytes()
    whole = len(content) - len(content) % RECORD.size
    return (late for due, late in RECORD.iter_unpack(content[:whole]) if begin <= due <= end)


def _main() -> None:
    path = sys.argv.pop(1)
    from controller.main import main  # noqa: PLC0415 - `lags` is for others

    with Path(path).open("wb", buffering=0) as file:
        asyncio.set_event_loop_policy(_Policy(file))
        main()


if __name__ == "__main__":
    _main()
