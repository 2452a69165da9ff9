"""The layering: which module may know which, read from the source."""

import ast
from pathlib import Path

import dcamt
from dcamt.methods import METHODS

ROOT = Path(dcamt.__file__).parent
MODULES = {
    ".".join(["dcamt", *path.relative_to(ROOT).with_suffix("").parts]): path
    for path in ROOT.rglob("*.py")
}
ALLOWED = {
    "losses": {"losses", "types", "errors"},
    "networks": {"networks", "errors"},
    "ops": {"ops", "types", "errors"},
    "records": {"config", "data", "records", "files", "errors"},
    "methods": {"config", "losses", "networks", "ops", "methods", "types", "errors"},
}


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of dcamt, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found += [(node.module or "", alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "dcamt"]


def layer(module: str, name: str) -> str:
    """The package or module right below dcamt that an import reaches."""
    return [*module.split("."), name][1]


def folder(package: str) -> dict[str, Path]:
    found = {name: p for name, p in MODULES.items() if name.startswith(f"dcamt.{package}.")}
    assert found, f"dcamt.{package} has gone: correct this test"
    return found


def test_the_lower_packages_know_nothing_above_them() -> None:
    for package, allowed in ALLOWED.items():
        for module, path in folder(package).items():
            used = {layer(*pair) for pair in imports(path)}
            assert used <= allowed, f"{module} imports {used - allowed}"


def test_the_engine_and_inference_know_methods_only_by_their_base() -> None:
    for package in ("engine", "inference", "data", "evaluation", "reporting"):
        for module, path in folder(package).items():
            for target, name in imports(path):
                if layer(target, name) == "methods":
                    assert target == "dcamt.methods.method", f"{module}: {target} {name}"


def test_one_method_does_not_lean_on_another() -> None:
    for module, path in folder("methods").items():
        if path.stem != "__init__":
            used = {target for target, name in imports(path) if layer(target, name) == "methods"}
            assert used <= {"dcamt.methods.method"}, f"{module} imports {used}"


def test_only_three_modules_know_the_list_of_methods() -> None:
    users = {
        module
        for module, path in MODULES.items()
        for target, name in imports(path)
        if target == "dcamt.methods" or (target, name) == ("dcamt", "methods")
    }
    assert users <= {"dcamt.complexity", "dcamt.runs.build"}


def test_every_file_among_the_methods_is_a_method() -> None:
    files = {name for name, path in folder("methods").items()}
    files -= {"dcamt.methods.__init__", "dcamt.methods.method"}
    assert {kind.__module__ for kind in METHODS.values()} == files


def test_nothing_unpickles() -> None:
    """Weights and arrays are read without running anything."""
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not names & {"pickle", "joblib", "dill", "cloudpickle"}, module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                assert call not in {"torch.load", "yaml.load", "yaml.unsafe_load"}, module
                allows = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert allows.get("allow_pickle", "False") == "False", module
