"""What MLflow is told of a job, and the sync of what a driver could not say any more."""
