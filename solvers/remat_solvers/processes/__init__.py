"""Time limits, interrupts and child processes.

The files, by idea:

    stopwatch  time against a limit
    interrupt  backends in a thread, so that Ctrl-C ends them with what they have found
    stdout     output of backends that cannot be switched off
    child      functions in a process of their own, which can be killed
"""
