"""The manifests of deploy/kuberay: strict against the fields that Kubernetes and KubeRay know, and as closed as AWS.

Pods and claims are held to Kubernetes' own schemas. For KubeRay's resources this file lists the fields of KubeRay
1.7.0 and refuses anything else, which the API server would drop unless asked to be strict. Names, types, enums and
minima are those of docs/reference/api.md of ray-project/kuberay at v1.7.0 (commit 97509c3a7216), which like the CRDs is
generated from the Go types of ray-operator/apis/ray/v1; what is required is from those types, and what the validators
refuse from controllers/ray/utils/validation.go, as far as these manifests go. Structs that no manifest uses are open.
With KUBERAY_CRDS=FOLDER (helm-chart/kuberay-operator/crds of a KubeRay release) they are held to that schema too.

Over 300 lines: KubeRay's published fields and rules stand beside the manifests that they are held against.
"""

import copy
import os
import re
import shlex
import subprocess
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Natural = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Manager = Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]
Strings = dict[str, str]
Open = dict[str, Any]  # a type of Kubernetes, or a struct of KubeRay that no manifest uses
TOKENS_SINCE = (2, 52, 0)  # Ray's version


class Auth(Fields):
    mode: Literal["disabled", "token"] | None = None
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class Autoscaler(Fields):
    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: Natural | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    image: str | None = None
    imagePullPolicy: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[Open] | None = None
    envFrom: list[Open] | None = None
    volumeMounts: list[Open] | None = None
    resources: Open | None = None
    securityContext: Open | None = None


class Head(Fields):
    template: Open  # held to Kubernetes' schema below
    rayStartParams: Strings | None = None
    resources: Strings | None = None
    labels: Strings | None = None
    serviceType: str | None = None
    headService: Open | None = None
    enableIngress: bool | None = None
    ingressOptions: Open | None = None


class ScaleStrategy(Fields):
    workersToDelete: list[str] | None = None


class Worker(Fields):
    groupName: str
    template: Open
    minReplicas: Natural
    maxReplicas: Natural
    replicas: Int32 | None = None
    numOfHosts: Int32 | None = None
    priority: Int32 | None = None
    idleTimeoutSeconds: Natural | None = None
    suspend: bool | None = None
    rayStartParams: Strings | None = None
    resources: Strings | None = None
    labels: Strings | None = None
    scaleStrategy: ScaleStrategy | None = None

    @model_validator(mode="after")
    def bounds_are_in_order(self) -> Self:
        if self.minReplicas > self.maxReplicas:
            raise ValueError("minReplicas is greater than maxReplicas")
        return self


class ClusterSpec(Fields):
    headGroupSpec: Head
    workerGroupSpecs: list[Worker] | None = None
    rayVersion: str | None = None
    authOptions: Auth | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: Autoscaler | None = None
    headServiceAnnotations: Strings | None = None
    suspend: bool | None = None
    managedBy: Manager | None = None
    upgradeStrategy: Open | None = None
    gcsFaultToleranceOptions: Open | None = None
    historyServerOptions: Open | None = None
    networkPolicy: Open | None = None
    tlsOptions: Open | None = None

    @model_validator(mode="after")
    def tokens_need_a_ray_that_has_them(self) -> Self:
        ray = tuple(int(part) for part in (self.rayVersion or "0").split("."))
        if self.authOptions and self.authOptions.mode != "disabled" and ray < TOKENS_SINCE:
            raise ValueError("tokens need a rayVersion of at least 2.52.0")
        return self

    @model_validator(mode="after")
    def resources_and_labels_are_given_once(self) -> Self:
        for group in (self.headGroupSpec, *(self.workerGroupSpecs or [])):
            params = (group.rayStartParams or {}).keys()
            if "labels" in params or (group.resources and params & {"num-cpus", "num-gpus", "memory", "resources"}):
                raise ValueError("labels and resources belong in one place")
        return self


class SubmitterConfig(Fields):
    backoffLimit: Int32 | None = None


class JobSpec(Fields):
    clusterSelector: Strings | None = None
    rayClusterSpec: ClusterSpec | None = None
    entrypoint: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    metadata: Strings | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    submitterPodTemplate: Open | None = None
    submitterConfig: SubmitterConfig | None = None
    backoffLimit: Natural | None = None
    activeDeadlineSeconds: Positive | None = None
    preRunningDeadlineSeconds: Positive | None = None
    ttlSecondsAfterFinished: Natural | None = None
    shutdownAfterJobFinishes: bool | None = None
    deletionStrategy: Open | None = None
    suspend: bool | None = None
    managedBy: Manager | None = None

    @model_validator(mode="after")
    def a_selected_cluster_is_left_as_it_is(self) -> Self:
        if not self.clusterSelector:
            if self.rayClusterSpec is None:
                raise ValueError("neither clusterSelector nor rayClusterSpec")
        elif not self.clusterSelector.get("ray.io/cluster"):
            raise ValueError("clusterSelector names no cluster")
        elif self.submissionMode == "SidecarMode" or self.backoffLimit or self.suspend:
            raise ValueError("a selected cluster admits no SidecarMode, backoffLimit or suspend")
        if (self.suspend or self.ttlSecondsAfterFinished) and not self.shutdownAfterJobFinishes:
            raise ValueError("suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes")
        return self


class CronJobSpec(Fields):
    jobTemplate: JobSpec
    schedule: str
    timeZone: str | None = Field(default=None, min_length=1)
    suspend: bool | None = None

    @model_validator(mode="after")
    def the_time_zone_is_known_and_apart(self) -> Self:
        if "TZ" in self.schedule or not (self.schedule.startswith("@") or len(self.schedule.split()) == 5):
            raise ValueError("schedule has five fields, and no time zone")
        if self.timeZone is not None and self.timeZone not in zoneinfo.available_timezones():
            raise ValueError("timeZone is unknown")
        return self


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
        lambda cluster: cluster["spec"]["workerGroupSpecs"][0].update(minReplicas=3),
        lambda cluster: cluster["spec"]["headGroupSpec"].update(resources={"CPU": "0"}),
        lambda cluster: cluster["spec"].update(rayVersion="2.51.0"),
        lambda cluster: cluster["spec"].pop("rayVersion"),
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.update(timezone="Europe/Berlin"),
        lambda spec: spec.update(timeZone=""),
        lambda spec: spec.update(timeZone="Europe/Nowhere"),
        lambda spec: spec.update(schedule="TZ=Europe/Berlin 0 2 * * *"),
        lambda spec: spec.update(concurrencyPolicy="Forbid"),
        lambda spec: spec.update(jobTemplate={"spec": spec["jobTemplate"]}),
        lambda spec: spec["jobTemplate"].pop("clusterSelector"),
        lambda spec: spec["jobTemplate"].update(clusterSelector={"cluster": "backbone"}),
        lambda spec: spec["jobTemplate"].update(submissionMode="SidecarMode"),
        lambda spec: spec["jobTemplate"].update(backoffLimit=1),
        lambda spec: spec["jobTemplate"].update(ttlSecondsAfterFinished=60),
    ],
)
def test_a_damaged_job_is_refused(damage: Callable[[dict[str, Any]], None]) -> None:
    (cron,) = [copy.deepcopy(document) for document in RAY if document["kind"] == "RayCronJob"]
    damage(cron["spec"])
    with pytest.raises(ValidationError):
        validate(cron)


@pytest.mark.skipif(CRDS is None, reason="KUBERAY_CRDS names no folder with KubeRay's published schemas")
@pytest.mark.parametrize("document", RAY, ids=[document["kind"] for document in RAY])
def test_every_manifest_holds_to_kuberays_published_schema(document: dict[str, Any]) -> None:
    crd = yaml.safe_load((Path(CRDS or "") / f"ray.io_{document['kind'].lower()}s.yaml").read_text(encoding="utf-8"))
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    jsonschema.validate(document, closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, which Kubernetes drops unless asked to be strict."""
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
