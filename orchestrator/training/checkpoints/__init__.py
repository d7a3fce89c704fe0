"""What a cell goes on from: checkpoints, how they are written behind the training, and the proof of a resume."""
