"""An append-only ledger of requests, whose later changes show: records, a Merkle tree, signed checkpoints."""
