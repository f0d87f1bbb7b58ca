"""What reads a run's logs: the report's page, the symptoms and the doctor."""
