"""Joint recomputation and offloading, with a lower bound."""
