"""HTTP: the OpenAI-compatible face of the engine. It knows JSON, sockets and status codes; the engine knows none."""
