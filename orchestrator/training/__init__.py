"""One cell on the ranks of a process group. Knows neither Ray nor MLflow."""
