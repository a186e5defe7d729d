"""The root of all errors that the controller raises on purpose."""


class ControllerFault(Exception):  # noqa: N818  a fault of what it works with, not of the program
    """An object, the API server or the CA is not as it should be."""
