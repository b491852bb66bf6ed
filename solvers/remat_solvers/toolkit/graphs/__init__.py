"""Facts about the graph of a problem.

The files, by idea:

    dropped_values  which values may be dropped, and which ops restore them
    contraction     a smaller problem, whose ops are groups of consecutive ops
    articulation    articulation points of the forward graph
    op_kinds        kinds of ops by their operator
    bit_sets        sets of indices as integers
"""
