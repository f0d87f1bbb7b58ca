"""What people label and how they get it: assignment, collecting answers, labelling in the terminal."""
