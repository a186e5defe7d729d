"""What can go wrong with a switch: catch `SwitchError` for all of it."""


class SwitchError(Exception):
    """Something failed with one switch; the text says what."""


class ConnectionLost(SwitchError):  # noqa: N818
    """The connection ended. What was in progress may have happened or not."""


class NotWriter(SwitchError):  # noqa: N818
    """Another controller may be writing to the switch: this one may not."""
