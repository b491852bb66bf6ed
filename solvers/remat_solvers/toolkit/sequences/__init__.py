"""Op sequences of a step with recomputation.

The files, by idea:

    recompute_dropped  drops given values, and recomputes them for backward
    segments           cuts the forward pass into nested segments, and recomputes each when backward needs it
    pruning            removes recomputations that are not needed
"""
