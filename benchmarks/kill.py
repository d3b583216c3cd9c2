"""Kills a fine-tuning at random moments, again and again, and compares its end with an undisturbed one.

    python benchmarks/kill.py [--kills 20]

The same command is killed (SIGKILL) after a random time until the number of kills is reached, then runs to its end. The
curves must be equal, and no temporary file may be left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import save

from product_classificator import make_marketplace

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.encoders.tiny_ruclip import write_checkpoint


def main() -> None:
    """Kill, compare, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # noqa: S311
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_marketplace(folder / "shop", products=600)
        model = write_checkpoint(folder / "model")
        (folder / "settings.toml").write_text("[heads]\nepochs = 3\nhidden = 32\n")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}

        def start(run: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", "from product_classificator.cli import main; main()", "tune"]
            command += [str(folder / "shop/products.parquet"), "--images", str(folder / "shop/images.zip")]
            command += ["--encoder", str(model), "--text", "title,description", "--characteristics", "category,sex"]
            command += ["--epochs", "4", "--batch-size", "32", "--learning-rate", "0.001"]
            command += ["--config", str(folder / "settings.toml"), "--out", str(folder / run)]
            return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)  # noqa: S603

        began = time.perf_counter()
        undisturbed = start("undisturbed")
        undisturbed.communicate()
        whole_s = time.perf_counter() - began
        killed = calls = 0
        while True:
            calls += 1
            process = start("disturbed")
            try:
                # Killing after up to the time of a whole run hits every stage, the start of Python included.
                after_s = chance.uniform(1, whole_s) if killed < arguments.kills else None
                errors = process.communicate(timeout=after_s)[1]
                if process.returncode:
                    raise SystemExit(f"call {calls} could not resume: {errors.decode()[-800:]}")
                if killed >= arguments.kills:
                    break
                (folder / "disturbed/run.json").unlink()  # finished: the remaining kills hit its last stage
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
        curves = [(folder / run / "curves.csv").read_text() for run in ("undisturbed", "disturbed")]
        encoders = [
            json.loads((folder / run / "run.json").read_text())["encoder"] for run in ("undisturbed", "disturbed")
        ]
        left = [path.name for path in (folder / "disturbed").rglob(".*.tmp")]
    is_equal = curves[0] == curves[1] and encoders[0] == encoders[1]
    print(f"{killed} kills in {calls} calls; equal curve and encoder: {is_equal}; temporary files left: {len(left)}")
    save(
        "kill",
        {"kills": killed, "calls": calls, "equal": is_equal, "temporary_files_left": len(left), "run_s": whole_s},
    )
    raise SystemExit(not is_equal)


if __name__ == "__main__":
    main()
