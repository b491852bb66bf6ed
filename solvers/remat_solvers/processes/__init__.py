"""Clocks, interrupts and child processes."""
