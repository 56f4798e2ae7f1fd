"""The `freehold` command: arguments, wiring, and what a terminal shows. No logic of its own."""
