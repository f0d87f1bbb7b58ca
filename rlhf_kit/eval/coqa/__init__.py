"""CoQA's dialogues, all turns, by the official scorer (`eval/scorers.py::coqa`)."""
