"""Answer parsers: from the text that a model writes to reasoning, text and tool calls, while it streams."""
