"""What is read from a run's logs: the report's page, the symptoms and the doctor."""
