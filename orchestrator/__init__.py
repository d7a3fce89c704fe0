"""How one cell is trained and measured: specs, planning, the Ray Train worker, FSDP2, checkpoints, MLflow.

Planning (`spec`, `plan`, `memory`, `flops`, `results`, `errors`) imports no torch, ray or mlflow.
"""
