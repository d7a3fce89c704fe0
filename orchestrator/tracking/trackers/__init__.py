"""One file a place where runs are told of; each registers how its URIs begin. Only MLflow's file knows MLflow."""
