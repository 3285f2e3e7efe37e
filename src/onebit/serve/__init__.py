"""A server with OpenAI's interface over the engine's batch, and the chat page on it."""
