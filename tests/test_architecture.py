"""The layering: which module may know which, read from the source."""

import ast
import re
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
    "methods": {"config", "section", "losses", "networks", "ops", "methods", "types", "errors"},
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


FLOORS = [
    {room.strip("` ") for room in line.split("|")[2].split(",")}
    for line in (ROOT.parents[1] / "docs" / "house.md").read_text().splitlines()
    if re.match(r"\| \d+ \|", line)
]
"""From the top down, as docs/house.md has them."""


def test_every_module_has_a_floor() -> None:
    rooms = [room for floor in FLOORS for room in floor]
    there = {name.split(".")[1] for name in MODULES if name != "dcamt.__init__"}
    assert sorted(rooms) == sorted(there)


def test_no_floor_knows_the_floors_above_it() -> None:
    number = {room: n for n, floor in enumerate(reversed(FLOORS)) for room in floor}
    for module, path in MODULES.items():
        own = module.split(".")[1]
        for target, name in imports(path):
            used = layer(target, name)
            if own not in ("__init__", used) and used != "__version__":
                assert number[used] < number[own], f"{module} imports {target}.{name}"


def test_no_two_modules_know_each_other() -> None:
    """Whatever follows the imports from a module never comes back to it."""
    known = {
        module: {t if t in MODULES else f"{t}.{n}" for t, n in imports(path)} & MODULES.keys()
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way, module))
        if module not in done:
            for other in known[module]:
                follow(other, (*way, module))
            done.add(module)

    for module in MODULES:
        follow(module, ())


def test_no_file_needs_a_table_of_contents() -> None:
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_losses_networks_and_methods_know_nothing_above_them() -> None:
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


def test_only_two_modules_know_the_list_of_methods() -> None:
    users = {
        module
        for module, path in MODULES.items()
        for target, name in imports(path)
        if target == "dcamt.methods" or (target, name) == ("dcamt", "methods")
    }
    assert users <= {"dcamt.runs.complexity", "dcamt.runs.build"}


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
