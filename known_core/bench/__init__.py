"""Benchmarks: what the method is worth, measured against everything simpler."""
