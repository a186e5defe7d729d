"""What a source tells the controller."""

from collections.abc import Iterable
from typing import Protocol

from controller.problems import Subject
from controller.sources.objects import Object
from flows.refs import ObjectRef


class Feed(Protocol):
    """Takes in what a source learns. All calls come from the event loop."""

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        """Objects added or changed, and references to those that are gone."""

    def report(self, subject: Subject, problem: str) -> None:
        """Say what is wrong with a subject of the source; empty: nothing any more."""

    def complete(self, whole: bool) -> None:
        """Whether everything that the source holds was read; until then nothing is removed."""
