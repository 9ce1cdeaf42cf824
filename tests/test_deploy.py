"""The files of deploy/ are valid by the schemas of their kinds, and ask the service for what it has."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from gradcam_fast.cli.commands import gradcam_fast

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = ("kubernetes.yaml", "kserve.yaml", "kuberay.yaml")
# Definitions of kinds (CustomResourceDefinition), *.yaml, from the releases of KServe and KubeRay.
DEFINITIONS = os.environ.get("CRDS")


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers(node):
    """Every container in a document."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "containers":
                yield from value
            yield from containers(value)
    elif isinstance(node, list):
        for member in node:
            yield from containers(member)


def entry_point():
    """The options that the image gives to ``gradcam-fast serve``."""
    text = (DEPLOY / "Dockerfile").read_text()
    command = yaml.safe_load(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[1])
    assert command[:2] == ["gradcam-fast", "serve"]
    return command[2:]


@pytest.mark.parametrize("name", MANIFESTS)
def test_each_document_says_what_it_is(name):
    for document in documents(name):
        assert document["apiVersion"] and document["kind"] and document["metadata"]["name"] == "gradcam-fast"


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_the_arguments_of_a_container_are_options_of_the_command(name):
    found = [container for document in documents(name) for container in containers(document)]
    assert found
    for container in found:
        command = gradcam_fast.commands["serve"]
        with command.make_context("serve", [*entry_point(), *container["args"]]) as context:
            assert context.params["host"] == "0.0.0.0" and context.params["model"].endswith(".pt2")
            port = context.params["port"]
        assert [exposed["containerPort"] for exposed in container["ports"]] == [port]
        assert [variable["name"] for variable in container["env"]] == ["GRADCAM_FAST_API_KEY"]
        assert container["resources"]["limits"]["cpu"].isdecimal()  # whole cores, which the threads follow


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_probes_ask_for_what_the_service_answers_without_a_key(name, tmp_path):
    pytest.importorskip("fastapi")
    from support import service

    (container,) = [container for document in documents(name) for container in containers(document)]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    assert {"readinessProbe", "livenessProbe"} <= paths.keys()
    with service.client(tmp_path, api_key="key") as client:
        for path in paths.values():
            assert client.get(path).status_code == 200
        client.app.state.ready = False
        assert client.get(paths["readinessProbe"]).status_code == 503
        assert client.get(paths["livenessProbe"]).status_code == 200


def test_a_pod_lives_longer_than_it_drains_and_answers():
    (deployment, *_) = documents("kubernetes.yaml")
    with gradcam_fast.commands["serve"].make_context("serve", entry_point()) as context:
        longest = context.params["drain"] + context.params["deadline"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > longest


def test_the_image_runs_the_service_itself_and_not_as_root():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER service"]
    (check,) = [line for line in lines if line.startswith("HEALTHCHECK")]
    assert "/v2/health/live" in check and shlex.split(check)
    # The constraints hold the versions that were tested.
    assert "constraints.txt" in "\n".join(lines)


@pytest.mark.slow
def test_rays_configuration_is_valid_and_builds_the_application():
    pytest.importorskip("ray")
    from ray.serve.schema import ServeDeploySchema

    from gradcam_fast.serving import ray_deployment

    (document,) = documents("kuberay.yaml")
    configuration = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (application,) = configuration.applications
    module, _, function = application.import_path.partition(":")
    assert module == ray_deployment.__name__
    assert getattr(ray_deployment, function)(application.args) is not None
    with pytest.raises(ValueError, match=r"settings: .*'colour'"):
        ray_deployment.application({"models": {"a": {"model": "b"}}, "settings": {"colour": 1}})
    with pytest.raises(ValueError, match="'wieghts' is unknown"):
        ray_deployment.application({"models": {"a": {"model": "b", "wieghts": "c"}}})


def strict(schema):
    """A schema that refuses unknown members, as the server does when it is told to be strict."""
    if isinstance(schema, dict):
        closed = {name: strict(value) for name, value in schema.items()}
        if "properties" in closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            closed["type"] = ["integer", "string"]
        return closed
    return [strict(member) for member in schema] if isinstance(schema, list) else schema


@pytest.mark.skipif(not DEFINITIONS, reason="CRDS names no folder with the definitions of KServe and KubeRay")
@pytest.mark.parametrize("name", ["kserve.yaml", "kuberay.yaml"])
def test_a_document_is_valid_by_the_definition_of_its_kind(name):
    import jsonschema

    (document,) = documents(name)
    definitions = [
        definition
        for path in Path(DEFINITIONS).glob("*.yaml")
        for definition in yaml.safe_load_all(path.read_text())
        if definition["spec"]["names"]["kind"] == document["kind"]
    ]
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for definition in definitions
        for version in definition["spec"]["versions"]
        if f"{definition['spec']['group']}/{version['name']}" == document["apiVersion"]
    ]
    closed = strict(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft7Validator(closed).validate(document)


@pytest.mark.skipif(not DEFINITIONS, reason="CRDS names no folder with the definitions of KServe and KubeRay")
def test_the_pod_of_the_deployment_is_valid():
    """By the pod's schema that KubeRay's definition holds."""
    import jsonschema

    (definition,) = [
        definition
        for path in Path(DEFINITIONS).glob("*.yaml")
        for definition in yaml.safe_load_all(path.read_text())
        if definition["spec"]["names"]["kind"] == "RayService"
    ]
    (schema,) = [version["schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"]
    pod = schema["openAPIV3Schema"]
    for step in ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec"):
        pod = pod["properties"][step]
    (deployment, *_) = documents("kubernetes.yaml")
    jsonschema.Draft7Validator(strict(pod)).validate(deployment["spec"]["template"]["spec"])
