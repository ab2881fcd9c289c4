"""OpenAI's wire format: request types, errors and server-sent events."""
