"""Talking to models: answers to prompts, for scripts and for people."""
