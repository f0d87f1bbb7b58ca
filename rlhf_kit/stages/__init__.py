"""The stages of the recipe, each from its options to the record of its run; `recipes/` has the YAMLs found by name."""
