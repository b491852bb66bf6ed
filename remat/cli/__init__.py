"""The command line."""

from remat.cli.app import main

__all__ = ["main"]
