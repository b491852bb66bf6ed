"""Costs of the ops of a captured step: measured on this machine, or estimated for a named device."""
