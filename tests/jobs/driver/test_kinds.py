"""What kinds of jobs have in common."""

import pytest
from mlflow import MlflowClient

from jobs.driver.kinds.kind import metric_name


@pytest.mark.parametrize(
    "backbone_id",
    [
        "tiny-llama2",
        "hf:./some folder",
        "hf:org/name@" + "0" * 40,
        "fused:tiny-siglip+hf:./own+linear",
        "qwen2.5-vl-3b",
    ],
)
def test_mlflow_takes_the_metrics_of_every_backbone(backbone_id: str, uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("kinds"))
    client.log_metric(run.info.run_id, metric_name("val_bits_per_byte", backbone_id), 1.0)
    assert [*client.get_run(run.info.run_id).data.metrics] == [metric_name("val_bits_per_byte", backbone_id)]
