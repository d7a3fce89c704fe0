"""One file per family. Each registers its specs when imported, and imports no torch for that."""
