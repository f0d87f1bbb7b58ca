"""Models: loading and saving, heads, adapters, ensembles, precision, and the checks before a first step."""
