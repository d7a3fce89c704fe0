"""Workers and the hub: one rank of a node downloads, and from then on nobody asks the hub."""

import os
import subprocess
import sys
from pathlib import Path

from local_hub import COMMIT, serve

CODE = """
import os
from gang import run_ranks

def work(spec):
    import torch
    import torch.distributed as dist
    from orchestrator.parallel import Mesh
    from orchestrator.training.model.sharding import build_sharded
    from orchestrator.spec_files.spec import Recipe

    os.environ["LOCAL_RANK"] = str(dist.get_rank())
    nothing = {"train": "-", "validation": "-"}
    recipe = Recipe.model_validate({"data": nothing, "budget": {"kind": "steps", "amount": 1}})
    backbone, _ = build_sharded(spec, recipe, Mesh.build(torch.device("cpu")), seed=0)
    return backbone.weights_read, str(backbone.spec.revision)

if __name__ == "__main__":
    from backbones.registry import get_spec

    print(run_ranks(3, work, get_spec("hf:org/ok")))
"""


def test_one_rank_of_a_node_downloads_and_the_others_read_its_cache(kit: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(CODE)
    paths = os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parents[1])])
    with serve(kit / "models" / "stories260K-llama") as (address, asked):
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        ranks = subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        first = list(asked)
        again = subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": paths, **environment, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert ranks.returncode == 0, ranks.stderr
    assert ranks.stdout.count("each rank its own rows") == 3
    assert ranks.stdout.count(COMMIT) == 3
    assert first.count("GET model.safetensors") == 1
    assert first.count("GET config.json") == 1
    assert again.returncode == 0, again.stderr
    assert asked == first, "a cache that is complete needs no hub"
