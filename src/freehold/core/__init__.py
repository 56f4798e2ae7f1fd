"""The nouns of the project: errors, sizes, block values, configurations and events. They act on nothing."""
