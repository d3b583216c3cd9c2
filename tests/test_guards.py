"""Rules of the house that no single module can keep by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import product_classificator

ROOT = Path(product_classificator.__file__).parent
FLOORS = {
    "errors": -1,
    "types": 0,
    "text": 0,
    "files": 0,
    "graphs": 0,
    "catalog": 1,
    "encoders": 1,
    "heads": 1,
    "evaluation": 1,
    "embeddings": 2,
    "runs": 2,
    "inputs": 2,
    "classificator": 3,
    "runtime": 3,
    "training": 3,
    "audit": 4,
    "bulk": 4,
    "export": 4,
    "cli": 5,
    "__main__": 6,
    "__init__": 5,
}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("product_classificator"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else ["__init__"]
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("product_classificator."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_from_lower_floors(path):
    room = room_of(path)
    if room == "__init__":
        return
    wrong = [other for other in imported_rooms(path) if other != room and FLOORS[other] >= FLOORS[room]]
    assert not wrong, f"{room} imports {wrong}"


def test_every_room_stands_on_a_floor():
    assert {room_of(path) for path in MODULES} == set(FLOORS)


def test_the_public_names_are_these_and_can_be_imported():
    assert sorted(product_classificator.__all__) == sorted(product_classificator._HOMES)
    for name in product_classificator.__all__:
        assert getattr(product_classificator, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Clasificator'"):
        product_classificator.Clasificator  # noqa: B018


@pytest.mark.parametrize("statement", ["import product_classificator", "import product_classificator.cli"])
def test_importing_is_cheap(statement):
    heavy = ("torch", "transformers", "pandas", "sklearn", "matplotlib", "pyarrow")
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout.strip() == "[]"


def test_nothing_in_the_product_unpickles_or_evaluates():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
