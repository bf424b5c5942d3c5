"""The one exception that stands for a user's mistake, and what is nobody's."""

import re


class UserError(Exception):
    """A user's mistake, told in one plain sentence: what is wrong, where (file, value), what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory is full; PyTorch's own kinds are told apart without importing it."""
    words = "allocate memory|out of memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))
