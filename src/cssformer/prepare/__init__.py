"""The benchmarks, one file each, from their official archives to a prepared folder.

A benchmark's file reads like its documentation: it tells what the data set is (a ``Benchmark``) and which file of its
archives is the picture or the label of which name in which split (a generator of ``Part``)::

    def parts(members: Sequence[Member]) -> Iterator[Part]:
        # Lists inside the archives, if there are any, are read from their members first.
        for member in members:
            if found := re.search(r"(?:^|/)images/(training|validation)/(ADE_\\w+_\\d{8})\\.jpg$", member.name):
                yield Part(SPLITS[found[1]], found[2], "image", member)
            ...

    BENCHMARK = Benchmark(title="ADE20K", ..., index_of={0: None, 1: 0, 2: 1, ...}, parts=parts)

All the rest (reading archives, pairing, counting, writing) is ``prepare_benchmark``.
"""
