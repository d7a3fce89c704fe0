"""One job from its plan to its conclusion: preparation, cells under leases, report, MLflow."""
