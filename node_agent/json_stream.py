"""The JSON of OVSDB's stream, read by Python's own decoder.

The package `ovs` has no C parser where it comes from PyPI, and its Python one looks at each
character: a third of what an ADD cost the agent.
"""

import json
import re
from typing import Any, Final


class Parser:
    """Stands in for `ovs.json.Parser` on a stream of JSON objects: one for each object."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = False
        self._skip = 0
        """Characters of the next piece that a backslash at the end of the last one escapes."""
        self._done = False

    def feed(self, text: str) -> int:
        """Take in what belongs to the object; how many characters that is."""
        at, self._skip = self._skip, 0
        while not self._done and (found := self._next_mark(text, at)) is not None:
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    at += 1
                case "{":
                    self._depth += 1
                case "}":
                    self._depth -= 1
                    self._done = self._depth <= 0
        if not self._done:
            self._skip = max(0, at - len(text))
            at = len(text)
        self._pieces.append(text[:at])
        return at

    def _next_mark(self, text: str, at: int) -> re.Match[str] | None:
        """What decides where the object ends: quotes, and braces that are not quoted."""
        return (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)

    def is_done(self) -> bool:
        """Whether the object is whole."""
        return self._done

    def finish(self) -> Any:
        """The object; a string says what is wrong with it."""
        try:
            return json.loads("".join(self._pieces))
        except json.JSONDecodeError as error:
            return str(error)


_IN_STRING: Final = re.compile(r'["\\]')
_OUTSIDE: Final = re.compile(r'["{}]')
