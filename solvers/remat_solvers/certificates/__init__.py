"""The checker of certificates, apart from everything that makes them."""
