"""Replays that evict under a budget and recompute on demand."""
