"""Memory of the process between pieces of work."""

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Give free memory back to the system; glibc keeps some for every shape."""
    if _trim:
        _trim(0)
