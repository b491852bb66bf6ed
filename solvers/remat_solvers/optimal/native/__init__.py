"""The local searches in C++, built when the package is installed."""
