"""Models behind OpenAI's API: `forms` reads a request, `answers` draws, `replies` writes it, `api` serves it."""
