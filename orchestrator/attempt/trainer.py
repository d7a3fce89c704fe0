"""Ray Train's trainer without Ray Data: workers read their data themselves.

Ray Train 2.60 starts an actor for data sets in every run, even where there are none: two seconds of a core and 230 MB
of memory for each gang.
"""

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.callback import RayTrainCallback


class TrainerWithoutDatasets(TorchTrainer):
    """A `TorchTrainer` that is given no data sets, and starts nothing for them."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        assert not self.datasets, "workers would be given no shards of them"
        return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]
