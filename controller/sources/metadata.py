"""ObjectMeta as the sources read it, and the sharing of what many objects have in common."""

from functools import lru_cache
from typing import Final

import msgspec

MOST_SHARED: Final = 65_536
"""Different maps of labels that are remembered to be shared. Most Pods have those of others."""


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """ObjectMeta. Kinds of which labels or annotations matter add those that do."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str | None = None


@lru_cache(maxsize=MOST_SHARED)
def _shared(labels: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(labels)


def shared_labels(labels: dict[str, str]) -> dict[str, str]:
    """Equal labels; if other objects have them too, one map for all. Nobody may change it."""
    return _shared(tuple(sorted(labels.items())))
