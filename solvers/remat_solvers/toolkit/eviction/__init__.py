"""Replays of a step that evict values when memory is short, and recompute them on demand.

The files, by idea:

    memory          the values on the device, and the interface of a rule that chooses what to evict
    replay          one replay under a budget
    settings        the search over several rules
    scoring         the base of rules that evict the value of the smallest score
    neighbourhoods  costs of recomputing a value together with its evicted neighbours
"""
