"""`polygrain determinism`: recorded runs rebuilt under random kills, every byte compared with the claim."""
