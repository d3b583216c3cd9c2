"""Manifests for bulk work agree with the command, the image and the plan; what runs them is on no test machine."""

import re
import shlex
from pathlib import Path

import yaml

from product_classificator import cli
from product_classificator.cli.options import Predict

DEPLOY = Path(__file__).parents[2] / "deploy"


def parsed(arguments):
    command, bound, _ = cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
    return command(*bound.args, **bound.kwargs)


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def is_careful(pod):
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    return container


def test_a_job_does_the_unit_of_its_index():
    job = load("job.yaml")["spec"]
    assert job["completionMode"] == "Indexed"
    container = is_careful(job["template"]["spec"])
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    program, *arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", "7") for argument in container["command"]]
    options = parsed(arguments)
    assert program == "product-classificator"
    assert isinstance(options, Predict)
    assert (options.plan, options.unit) == (Path("/data/predictions"), 7)


def test_a_ray_job_predicts_on_its_own_cluster():
    spec = load("rayjob.yaml")["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    options = parsed(arguments)
    assert program == "product-classificator"
    assert (options.by.cluster, options.out) == ("auto", Path("/data/predictions"))
    cluster = spec["rayClusterSpec"]
    constraints = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in constraints
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        is_careful(group["template"]["spec"])


def test_a_slurm_task_does_the_unit_of_its_number():
    script = (DEPLOY / "array.sbatch").read_text()
    (command,) = re.findall(r"^srun (.*)$", script, re.MULTILINE)
    command = command.replace('"$1"', "out").replace('"$SLURM_ARRAY_TASK_ID"', "3")
    options = parsed(shlex.split(command)[1:])
    assert (options.plan, options.unit) == (Path("out"), 3)


def test_the_image_can_be_built_for_bulk_work():
    text = (DEPLOY / "Dockerfile").read_text()
    assert "ARG EXTRAS=serve" in text
    assert '".[$EXTRAS]"' in text
