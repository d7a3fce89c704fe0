"""From a spec to cells: pure arithmetic and what can be looked up. No torch, ray, mlflow."""
