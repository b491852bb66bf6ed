"""Checks certificates, with code that shares nothing with the prover."""
