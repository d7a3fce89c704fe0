"""From steps to MLflow without loss: workers append to a spool, the driver's writer sends it with acknowledgement."""
