"""Sentences for people, which travel from agents to the controller, its log and Events.

A sentence is one line of bounded length. It holds no character that controls a terminal or changes
the direction of text: logs and Events are read by people who trust what they see.
"""

import re
from functools import cache
from typing import Final

MAX_SENTENCE: Final = 1000
"""Characters of a sentence."""

HIDDEN: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u180e"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
"""The characters that no sentence holds, as the inside of a class of a regular expression: those of
Unicode's categories Cc, Cf, Cs, Zl and Zp."""
_HIDDEN: Final = re.compile(f"[{HIDDEN}]")


def readable(text: str) -> str:
    r"""Make a sentence of any text.

    Line breaks become blanks, other hidden characters escapes like `\u202e`.
    """
    found = text[: MAX_SENTENCE + 1]
    if not (found.isascii() and found.isprintable()):
        found = _HIDDEN.sub(lambda match: _escaped(match[0]), found)
    return found if len(found) <= MAX_SENTENCE else found[: MAX_SENTENCE - 1] + "…"


@cache
def _escaped(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if character < "\x80":
        return f"\\x{ord(character):02x}"
    return character.encode("ascii", "backslashreplace").decode()
