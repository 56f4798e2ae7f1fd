"""For a legal or security team: what a model is and under whose law, that nothing leaves, what was decided."""
