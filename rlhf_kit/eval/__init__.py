"""Measurements: one package per benchmark, the scorers, and what all of them share."""
