"""What requests cost: a dated price table, own hardware, and the same traffic elsewhere."""
