"""The model as it is trained: sharded, compiled where that pays, with its optimizers."""
