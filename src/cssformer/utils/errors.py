"""The one exception that stands for a user's mistake, and what is nobody's."""

import errno
import re


class UserError(Exception):
    """A user's mistake, told in one plain sentence: what is wrong, where (file, value), what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory is full; PyTorch's own kinds are told apart without importing it."""
    words = "allocate memory|out of memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what a UserError tells, is that no file can be written: a full or a read-only disk."""
    return getattr(error.__cause__ or error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
