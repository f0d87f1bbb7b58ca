"""Plain text: the last word of a passage, perplexity, summaries after TL;DR:."""
