"""What is imported is not searched for garbage; what is made later is."""

import subprocess
import sys

PROGRAM = """
import gc, weakref
from cssformer.utils.garbage import kept_for_good

class Node:
    def __init__(self):
        self.itself = self

for turn in range(2):
    with kept_for_good():
        within = [Node() for _ in range(10_000)]
        assert gc.isenabled() == (turn > 0)
    assert gc.isenabled()
    searched = {id(each) for each in gc.get_objects()}
    assert any(id(node) in searched for node in within) == (turn > 0)
garbage = weakref.ref(Node())
gc.collect()
assert garbage() is None
"""


def test_only_the_first_imports_are_left_out() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
