"""Copies between the device and the host: which values, when, and how they are paced."""
