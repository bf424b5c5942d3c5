"""How this process asks the system for memory."""

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep what tensors free for the next ones, up to the process's end, instead of giving it back.

    glibc returns every block above 32 MB at once and gets it anew, zeroed page by page: from 1024 x 1024 pixels on that
    is a quarter of a network's time (docs/performance.md). The price is a larger process: blocks that no longer fit lie
    idle, at first several times the largest one. For programs of one's own, which the command line's are: the whole
    process is affected, its main thread most. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
