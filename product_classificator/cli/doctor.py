"""`doctor`: what a report of a bug, or an installation that does not work, needs to show."""

import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement

from product_classificator.cli.console import out
from product_classificator.cli.options import Doctor
from product_classificator.encoders.base import cores
from product_classificator.files import cache_home

_PACKAGE = "product_classificator"
_SHOWN = (_PACKAGE, "torch", "transformers", "onnxruntime", "numpy", "pyarrow", "pandas", "scikit-learn", "pillow")
_OF_DEVELOPERS = {"bench", "check", "dist", "docs", "test"}


def doctor(options: Doctor) -> None:
    """Print machine, versions, caches, threads, device, and which packages are missing."""
    devices, threads, caches = _of_packages()
    facts = {
        "machine": f"{platform.platform()}, {cores()} cores, Python {platform.python_version()}",
        "versions": {name: _version(name) or "missing" for name in _SHOWN},
        "device": ", ".join([*devices, "cpu"]),
        "threads": {"torch": threads, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "caches in MB": {str(path): _size_mb(path) for path in caches},
        "missing": {f"pip install '{package}'": names for package, names in missing_packages().items()},
    }
    if options.json:
        out.print(json.dumps(facts, ensure_ascii=False, indent=1), soft_wrap=True)
        return
    for name, value in facts.items():
        parts = [f"{key} {item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
        between = "\n  " if name == "missing" else ", "
        out.print(f"{name}: {between.join(parts) or 'nothing'}", soft_wrap=True)


def missing_packages() -> dict[str, str]:
    """Return the package, and it with each extra, -> its requirements that are not met, if there are any."""
    facts, missing = metadata(_PACKAGE), dict[str, str]()
    needed = [Requirement(text) for text in facts.get_all("Requires-Dist") or ()]
    for extra in ["", *sorted({*(facts.get_all("Provides-Extra") or ())} - _OF_DEVELOPERS)]:
        of_extra = [need for need in needed if (need.marker.evaluate({"extra": extra}) if need.marker else not extra)]
        unmet = [f"{need.name}{need.specifier}" for need in of_extra if not _is_met(need)]
        missing |= {f"{_PACKAGE}[{extra}]" if extra else _PACKAGE: ", ".join(unmet)} if unmet else {}
    return missing


def _is_met(need: Requirement) -> bool:
    installed = _version(need.name)
    return installed is not None and need.specifier.contains(installed, prereleases=True)


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _of_packages() -> tuple[list[str], int | None, list[Path]]:
    """Return accelerators, threads of torch and caches, as far as the packages that know them are installed."""
    devices, threads, caches = list[str](), None, [cache_home()]
    with suppress(ImportError):
        import torch  # what is missing is to be shown, not to fail

        threads = torch.get_num_threads()
        devices += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
        devices += ["mps"] if torch.backends.mps.is_available() else []
    with suppress(ImportError):
        from huggingface_hub import constants

        caches.append(Path(constants.HF_HUB_CACHE))
    return devices, threads, caches


def _size_mb(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) // 1_000_000
