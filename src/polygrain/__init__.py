"""Multi-granular self-supervised vision: rebuild, ablate, compare and audit, bit for bit."""
