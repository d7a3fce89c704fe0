"""The manifests of deploy/kuberay: strict against the fields that Kubernetes and KubeRay know, and as closed as AWS.

Pods and claims are held to Kubernetes' own schemas. For KubeRay's resources this file lists, of the fields that KubeRay
1.7 has, those that the manifests may use; anything else is refused, as KubeRay's published schema would silently drop
it. With KUBERAY_CRDS=FOLDER (helm-chart/kuberay-operator/crds of a KubeRay release) they are held to that schema too.
"""

import copy
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kuberay"
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
KUBERNETES = "1.34"
CRDS = os.environ.get("KUBERAY_CRDS")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


ALL = [document for path in sorted(FOLDER.glob("*.yaml")) for document in documents(path.name)]
RAY = [document for document in ALL if document["apiVersion"] == "ray.io/v1"]
(CLUSTER,) = [document for document in RAY if document["kind"] == "RayCluster"]
HEAD = CLUSTER["spec"]["headGroupSpec"]
WORKERS = CLUSTER["spec"]["workerGroupSpecs"]


class Fields(BaseModel):
    """Unknown fields and wrong types are errors."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Auth(Fields):
    mode: Literal["disabled", "token"]
    secretName: str | None = None


class Autoscaler(Fields):
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None


class Head(Fields):
    serviceType: str | None = None
    rayStartParams: dict[str, str]
    template: dict[str, Any]  # held to Kubernetes' schema below


class Worker(Fields):
    groupName: str
    replicas: int | None = None
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class ClusterSpec(Fields):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: Head
    workerGroupSpecs: list[Worker]


class JobSpec(Fields):
    clusterSelector: dict[str, str]
    entrypoint: str
    entrypointNumCpus: float | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] | None = None
    runtimeEnvYAML: str | None = None


class CronJobSpec(Fields):
    schedule: str
    timeZone: str | None = None
    suspend: bool | None = None
    jobTemplate: JobSpec


class Metadata(Fields):
    name: str | None = None
    generateName: str | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}


SPECS = {"RayCluster": ClusterSpec, "RayJob": JobSpec, "RayCronJob": CronJobSpec}


def validate(document: dict[str, Any]) -> None:
    """Raises ValidationError of pydantic for a resource of KubeRay, of jsonschema for one of Kubernetes."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    Metadata.model_validate(document["metadata"])
    SPECS[document["kind"]].model_validate(document["spec"])
    for template in templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] != "RayCluster":
        return []
    spec = document["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def containers() -> Iterator[dict[str, Any]]:
    for template in templates(CLUSTER):
        yield from template["spec"]["containers"]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def words_of(command: str, program: str) -> set[str]:
    """The options that a shell command gives to `mlflow server`, say."""
    return set(shlex.split(command.split(program, 1)[1].split(" && ")[0]))


# --- accepted ---


@pytest.mark.parametrize("document", ALL, ids=[f"{d['kind']}-{n}" for n, d in enumerate(ALL)])
def test_every_manifest_holds_known_fields_of_the_right_type(document: dict[str, Any]) -> None:
    validate(document)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cluster: cluster["spec"].update(authOption={"mode": "token"}),
        lambda cluster: cluster["spec"]["authOptions"].update(mode="tokens"),
        lambda cluster: cluster["spec"]["workerGroupSpecs"][0].update(maxReplica=2),
        lambda cluster: cluster["spec"]["workerGroupSpecs"][0].update(maxReplicas="2"),
        lambda cluster: cluster["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda cluster: cluster["spec"]["headGroupSpec"]["template"]["spec"].update(container=[]),
        lambda cluster: cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(envs=[]),
        lambda cluster: cluster["spec"]["headGroupSpec"]["template"]["spec"]["volumes"][0].update(claim="x"),
    ],
)
def test_a_damaged_manifest_is_refused(damage: Callable[[dict[str, Any]], None]) -> None:
    cluster = copy.deepcopy(CLUSTER)
    damage(cluster)
    with pytest.raises((ValidationError, jsonschema.ValidationError, kubernetes_validate.utils.ValidationError)):
        validate(cluster)


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's published schemas")
@pytest.mark.parametrize("document", RAY, ids=[document["kind"] for document in RAY])
def test_every_manifest_holds_to_kuberays_published_schema(document: dict[str, Any]) -> None:
    crd = yaml.safe_load((Path(CRDS or "") / f"ray.io_{document['kind'].lower()}s.yaml").read_text(encoding="utf-8"))
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    jsonschema.validate(document, closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


@pytest.mark.parametrize("container", list(containers()), ids=lambda container: container["name"])
def test_every_command_is_valid_shell(container: dict[str, Any]) -> None:
    assert container["command"] == ["/bin/bash", "-c", "--"]
    checked = subprocess.run(["bash", "-n", "-c", container["args"][0]], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


# --- the same settings as on AWS ---


def test_the_cluster_demands_a_token_and_runs_the_pinned_ray() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and CLUSTER["spec"]["rayVersion"] == pinned[1]
    assert f"FROM rayproject/ray:{pinned[1]}-" in (FOLDER / "Dockerfile").read_text()


def test_no_secret_has_a_value() -> None:
    for container in containers():
        for variable in container["env"]:
            if re.search(r"TOKEN|PASSWORD|SECRET|KEY", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert not [document for document in ALL if document["kind"] == "Secret"]


def test_mlflow_is_started_as_on_aws() -> None:
    (theirs,) = [command for command in AWS["head_start_ray_commands"] if "mlflow server" in command]
    (mlflow,) = [container for container in containers() if container["name"] == "mlflow"]
    assert words_of(mlflow["args"][0], "mlflow server") == words_of(theirs, "mlflow server")
    settings = dict(re.findall(r"--setenv=(\w+)=(\w+)", theirs))
    assert environment(mlflow) == settings and len(settings) == 3


def test_drivers_are_given_what_they_are_given_on_aws() -> None:
    (start,) = [command for command in AWS["head_start_ray_commands"] if "ray start --head" in command]
    theirs = dict(re.findall(r"\b([A-Z_]+)=(\S+)", start))
    ours = environment(HEAD["template"]["spec"]["containers"][0])
    shared = theirs.keys() & ours.keys()
    assert {"BACKBONE_STORAGE", "MLFLOW_TRACKING_URI", "HF_HUB_CACHE"} < shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_head_takes_no_tasks_and_starts_the_dispatcher() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert CLUSTER["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    command = HEAD["template"]["spec"]["containers"][0]["args"][0]
    assert 'python -m jobs.dispatcher start --storage "$BACKBONE_STORAGE"' in command
    assert command.endswith('eval "$KUBERAY_GEN_RAY_START_CMD"')


def test_every_pod_mounts_the_same_claim_which_many_may_write() -> None:
    (claim,) = [document for document in ALL if document["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for template in templates(CLUSTER):
        (volume,) = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert all({"name": "shared", "mountPath": "/shared"} in container["volumeMounts"] for container in containers())


def test_workers_name_the_interface_that_gloo_and_nccl_use() -> None:
    for group in WORKERS:
        variables = environment(group["template"]["spec"]["containers"][0])
        assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"] != "lo"


def test_every_container_has_limits_and_may_not_gain_rights() -> None:
    for container in containers():
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert all(template["spec"]["securityContext"]["runAsNonRoot"] for template in templates(CLUSTER))


def test_strangers_reach_the_job_api_alone() -> None:
    (policy,) = [document for document in ALL if document["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    inside, outside = policy["spec"]["ingress"]
    assert inside["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert [port["port"] for port in outside["ports"]] == [8265]


def test_jobs_run_on_that_cluster_with_an_entry_point_that_exists() -> None:
    jobs = [document["spec"].get("jobTemplate", document["spec"]) for document in RAY if document is not CLUSTER]
    assert len(jobs) == 2
    for job in jobs:
        assert job["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
        program, flag, module, spec = job["entrypoint"].split()
        assert (program, flag) == ("python", "-m")
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        assert spec.startswith("/shared/")
