"""The JSON of OVSDB's stream, read by Python's own decoder.

The package `ovs` has no C parser where it comes from PyPI, and its Python one looks at each
character: a third of what an ADD cost the agent.
"""

import json
from typing import Any


class Parser:
    """Stands in for `ovs.json.Parser` on a stream of JSON objects: one for each object."""

    def __init__(self) -> None:
        self._text = ""
        self._value: Any = None
        self._done = False
        self._next_try = 0

    def feed(self, text: str) -> int:
        """Take in what belongs to the object; how many characters that is."""
        before = len(self._text)
        self._text = self._text + text if before else text.lstrip()
        skipped = 0 if before else len(text) - len(self._text)
        # An object ends where the stream pauses, or in the midst of what follows. To look for the
        # latter each time would take quadratic effort for a long one.
        if not text.rstrip().endswith("}") and len(self._text) < self._next_try:
            return len(text)
        try:
            self._value, end = _DECODER.raw_decode(self._text)
        except json.JSONDecodeError as error:
            if _is_cut_off(error):
                self._next_try = 2 * len(self._text)
                return len(text)
            self._value, end = str(error), len(self._text)
        self._done = True
        return skipped + end - before

    def is_done(self) -> bool:
        """Whether the object is whole, or can never be."""
        return self._done

    def finish(self) -> Any:
        """The object; a string says what is wrong with it."""
        return self._value


_DECODER = json.JSONDecoder()


_LONGEST_TOKEN = 6
"""Characters of a token beside strings and numbers, or of an escape in a string."""


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Whether more text could make it right: it was read to its last token, or an open string."""
    return (
        error.msg.startswith("Unterminated string")
        or error.pos > len(error.doc.rstrip()) - _LONGEST_TOKEN
    )
