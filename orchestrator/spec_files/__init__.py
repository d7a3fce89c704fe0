"""The files that people write: nouns, YAML with lines, checks that name the remedy."""
