"""OpenAI's chat completions and completions, and what stands beside them: wire types, routes, events."""
