"""vtc inside other evaluation and serving software; each part is imported only when that software loads it."""
