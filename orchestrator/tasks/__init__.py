"""Tasks of lm-evaluation-harness: on a model folder, and on the sharded model of a cell. The only door to lm_eval."""
