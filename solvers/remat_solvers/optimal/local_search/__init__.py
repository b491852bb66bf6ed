"""Simulated annealing over op sequences."""
