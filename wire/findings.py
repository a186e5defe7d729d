"""What is wrong with a node, found by looking at it: `sluice check`."""

from enum import Enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.documents import Sentence

MAX_FINDINGS: Final = 64
"""Findings about one node; further ones are counted."""
MAX_UNCHECKED: Final = 64


class Severity(Enum):
    """How much a finding matters."""

    ERROR = "error"
    """Something does not work, or will not."""
    WARNING = "warning"
    """It works now, and may stop, or only a part of it fails."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, and how to put it right."""

    severity: Severity
    subject: Sentence
    """The object: a program, a file, an interface, another node."""
    text: Sentence
    """What is wrong with it."""
    cure: Sentence
    """What to do about it."""


class NodeFindings(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that was found on one node."""

    node: Sentence
    findings: Annotated[tuple[Finding, ...], Meta(max_length=MAX_FINDINGS)] = ()
    left_out: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Findings beyond `MAX_FINDINGS`."""
    unchecked: Annotated[tuple[Sentence, ...], Meta(max_length=MAX_UNCHECKED)] = ()
    """What could not be looked at, and why."""
