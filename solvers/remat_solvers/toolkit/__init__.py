"""Building blocks that several methods share.

The files, by idea:

    trials        the best plan of a search, and the search over a method's parameter
    requirements  the parts of a problem that a method cannot do without
    options       the check of a solver's options
    arrays        names for the kinds of numpy arrays
    graphs/       facts about a problem's graph
    sequences/    op sequences with recomputation, and their pruning
    chains/       a step as a chain of stages, and dynamic programs over it
    eviction/     replays that evict values when memory is short, and recompute them on demand
    transfers/    copies to and from the host, and when they run
    programs/     backends for linear and integer programs
"""
