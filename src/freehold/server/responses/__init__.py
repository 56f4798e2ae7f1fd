"""OpenAI's Responses API: wire types, history, output items, routes and events."""
