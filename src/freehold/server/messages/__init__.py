"""Anthropic's Messages API: wire types, history, content blocks, routes and events."""
