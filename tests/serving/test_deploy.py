"""What can be checked of the deployment files without an engine: they agree with the command, and keep good habits."""

import configparser
import json
import re
import shlex
from pathlib import Path

import yaml

from product_classificator import cli
from product_classificator.cli.options import Serve

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVE_GRACE_SECONDS = 30  # of `server`


def docker_instructions():
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    return [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]


def parsed(arguments):
    """What the command line makes of arguments."""
    command, bound, _ = cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
    return command(*bound.args, **bound.kwargs)


def test_the_image_is_slim_unprivileged_pinned_and_checked():
    instructions = docker_instructions()
    kinds = [kind for kind, _ in instructions]
    values = dict(instructions)
    assert all(re.search(r"^python:3\.\d+-slim( AS \w+)?$", value) for kind, value in instructions if kind == "FROM")
    assert kinds.count("FROM") == 2  # the build leaves nothing behind
    assert values["USER"] == "10001"
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert "ADD" not in kinds
    for kind, value in instructions:
        if kind == "RUN" and "pip install" in value:
            assert "-c constraints.txt" in value
            assert "--no-cache-dir" in value
    assert "/healthz" in values["HEALTHCHECK"]
    assert json.loads(values["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    for port in (8000, 9100):
        assert str(port) in values["EXPOSE"]


def test_the_image_starts_the_service():
    program, *arguments = json.loads(dict(docker_instructions())["ENTRYPOINT"])
    assert program == "product-classificator"
    options = parsed(arguments)
    assert isinstance(options, Serve)
    assert (options.settings.host, options.settings.keys) == ("0.0.0.0", Path("/keys/keys.json"))  # noqa: S104


def test_compose_reads_only_and_waits_for_the_drain():
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "/tmp" in service["tmpfs"]  # noqa: S108
    assert {volume.split(":")[1] for volume in service["volumes"]} == {"/model", "/keys", "/cache"}
    assert int(service["stop_grace_period"].rstrip("s")) > 10 + SERVE_GRACE_SECONDS
    assert "127.0.0.1:9100:9100" in service["ports"]


def test_kubernetes_probes_drains_and_limits():
    objects = {item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget"}
    template = objects["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    for kind, selector in (("Deployment", "matchLabels"), ("PodDisruptionBudget", "matchLabels")):
        assert objects[kind]["spec"]["selector"][selector] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    pod = template["spec"]
    (container,) = pod["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    entrypoint = json.loads(dict(docker_instructions())["ENTRYPOINT"])[1:]
    settings = parsed([*entrypoint, *container["args"]]).settings
    assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + SERVE_GRACE_SECONDS
    assert {port["containerPort"] for port in container["ports"]} == {settings.port, settings.metrics_port}


def test_systemd_drains_and_reloads():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "product-classificator.service")
    service = unit["Service"]
    settings = parsed(shlex.split(service["ExecStart"])[1:]).settings
    assert int(service["TimeoutStopSec"]) > settings.drain_seconds + SERVE_GRACE_SECONDS
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
