"""A declared list of measurements on the models of every stage."""
