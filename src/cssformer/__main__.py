"""``python -m cssformer`` is the command ``cssformer``."""

import sys

from cssformer.cli import main

if __name__ == "__main__":
    sys.exit(main())
