"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A user's mistake, told in one plain sentence: what is wrong, where (file, value), what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """
