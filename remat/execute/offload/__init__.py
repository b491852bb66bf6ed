"""Offloading at run time: values are copied to a tier and fetched back while compute goes on."""
