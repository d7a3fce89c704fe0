"""From a data source to packed batches of token ids: examples, prepared token arrays, the order of a run."""
