"""A training step as a chain of stages.

The files, by idea:

    cuts               where the forward pass is cut
    chain              the stages, with their forward and backward ops
    schedule           steps over the stages, and the op sequence that carries them out
    costs              times and bytes of the stages
    persistent         rotor's dynamic program over memory-persistent schedules
    persistent_search  the search for the memory at which its schedule fits the budget
    equal_steps        the chains that methods for equal steps are tried on
    binomial           the schedules and closed forms of revolve
"""
