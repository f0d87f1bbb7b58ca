"""The stages of the recipe, each a run from its options to its record; in `recipes/` the YAMLs found by name."""
