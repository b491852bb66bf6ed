"""Joint recomputation and offloading where there is a link, with a lower bound."""
