"""Joint recomputation and offloading for problems with a link, with a lower bound."""
