"""The manifests in examples/kubernetes: what the server and the docs promise about probes and shutdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from lucid_deploy.cli.serve import command
from lucid_deploy.serving.front import HEALTH

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the extra dev")
FOLDER = Path(__file__).parents[2] / "examples" / "kubernetes"
VERSION = "1.37"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def deployment() -> dict[str, Any]:
    (found,) = (one for one in documents("deployment.yaml") if one["kind"] == "Deployment")
    return found


def pod_templates() -> list[dict[str, Any]]:
    """The pods that KubeRay makes."""
    cluster = documents("rayservice.yaml")[0]["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def options(words: list[str]) -> click.Context:
    return command.make_context("serve", list(words))


def test_labels_and_ports_fit() -> None:
    service, budget, deployed = documents("deployment.yaml")
    labels = deployed["spec"]["template"]["metadata"]["labels"]
    assert labels == deployed["spec"]["selector"]["matchLabels"]
    assert labels == service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"]
    (container,) = deployed["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": HEALTH[0], "port": port["name"]}
    assert options(container["args"][1:]).params["port"] == port["containerPort"]


def test_the_pod_has_time_to_end() -> None:
    """preStop and grace fit into what Kubernetes waits, and grace is no less than a request may take."""
    spec = deployment()["spec"]["template"]["spec"]
    container = spec["containers"][0]
    given = options(container["args"][1:]).params
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert container["args"][0] == "serve"
    assert spec["terminationGracePeriodSeconds"] >= sleep + given["grace"] + 10
    assert given["grace"] >= given["timeout"]
    for template in pod_templates()[1:]:
        assert template["spec"]["terminationGracePeriodSeconds"] > given["grace"]


def test_files_lie_where_the_options_say() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    given = options(spec["containers"][0]["args"][1:]).params
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert given["artifact"].startswith(mounts["models"] + "/")
    assert given["api_key_file"].startswith(mounts["keys"] + "/")
    (keys,) = (volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys")
    assert keys["defaultMode"] & 0o007 == 0  # a file that everyone can read is refused


def test_the_serve_configuration_is_valid() -> None:
    pytest.importorskip("ray", reason="the extra ray")
    from ray.serve.schema import ServeDeploySchema

    from lucid_deploy.serving.ray_cluster import APPLICATION

    text = documents("rayservice.yaml")[0]["spec"]["serveConfigV2"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    assert application.name == APPLICATION
    assert application.import_path == "lucid_deploy.cli.serve:ray_application"
    given = options(application.args["options"].split()).params
    assert given["replicas"] == 2
