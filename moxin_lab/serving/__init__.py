"""Stage 09: a server for OpenAI's clients, a knowledge base with sources, a terminal to chat in."""
