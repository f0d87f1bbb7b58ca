"""Measurements: a package a benchmark, the scorers, and what all of them share."""
