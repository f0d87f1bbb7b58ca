"""Data: formats and their validators, loading from any source, chat templates, packing. Import from the modules."""
