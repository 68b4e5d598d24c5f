"""Emulated links and the methods that benchmarks/bandwidth.py compares on them."""
