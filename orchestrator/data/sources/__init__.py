"""Where examples come from: rows of any container, read in blocks, known to planning by digests and counts alone."""
