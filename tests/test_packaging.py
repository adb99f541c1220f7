"""What the package declares.

* Every module that serves needs the required libraries alone; all of them are needed.
* An extra is what its room imports, itself or through the modules it imports: no more, no less.
* No message advises an extra of a package that no index holds.
* Every fault that mutants.py plants is one of a line that is still there.
"""

import ast
import configparser
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hear_jepa"
# Extras, and the room whose libraries they give together; every other module needs the required libraries alone.
ROOMS = {
    ("train",): "train/",
    ("eval",): "evaluation/",
    ("plot", "label", "umap"): "explore/",
    ("plot",): "figures.py",
    ("parquet", "lance"): "files/tables.py",
    ("remote",): "files/sounds.py",
    ("hub",): "hub.py",
    ("ray",): "files/ray.py",
    ("onnx",): "commands/export.py",
}
# Asked for by name (hf:…, .parquet, https:…, ray) in any room.
GATES = {"hub.py", "files/tables.py", "files/sounds.py", "files/ray.py"}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "umap": "umap-learn", "nnAudio": "nnaudio", "lance": "pylance"}
THROUGH_OTHERS = {"tensorboard", "onnx"}  # torch.utils.tensorboard and torch.onnx import them
BENCHES = {"mteb", "xares", "perch_hoplite", "ml_collections"}  # for whose adapters the tests look, and skip
OF_OTHERS = {"pytorch_lightning", "heareval", "tensorflow"}  # of hear-eval-kit, which has a list of its own
OF_OTHERS |= {"perch_hoplite", "ml_collections"}  # in the test of an adapter, which skips without them


@cache
def imported(path: Path) -> set[str]:
    """Full names of all modules that a module imports, anywhere in it; what stands in them is named too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path} imports by a relative name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def libraries(path: Path) -> set[str]:
    """Distributions of all third-party libraries that a module imports."""
    names = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"hear_jepa"} - OF_OTHERS
    return {DISTRIBUTIONS.get(name, name) for name in names}


@cache
def reached(room: str) -> set[str]:
    """The modules of a room, the modules of the package that they import, and so on; gates count as rooms only."""
    found: set[str] = set()
    waiting = [module for module in modules() if module.startswith(room)]
    assert waiting, f"no module is in {room}"
    while waiting:
        module = waiting.pop()
        if module in found or (module in GATES and module != room):
            continue
        found.add(module)
        names = (name.replace(".", "/").removeprefix("hear_jepa/") for name in imported(PACKAGE / module))
        waiting += {f"{name}{end}" for name in names for end in (".py", "/__init__.py")} & set(modules())
    return found


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Names of the required distributions, and those of every extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")

    def names(lines: str) -> set[str]:
        return {re.match(r"[\w-]+", line)[0] for line in lines.split("\n") if line}

    extras = {extra: names(lines) for extra, lines in config["options.extras_require"].items()}
    return names(config["options"]["install_requires"]), extras


@cache
def modules() -> list[str]:
    """Paths of all modules below the package, through its links."""
    folders = [PACKAGE, PACKAGE / "train", PACKAGE / "weights"]  # rglob follows no links
    found = {path.relative_to(PACKAGE).as_posix() for folder in folders for path in folder.rglob("*.py")}
    assert len(found) > 60 and "train/loop.py" in found
    return sorted(found)


def test_every_module_outside_the_rooms_needs_only_what_is_required():
    required, _ = declared()
    plain = [module for module in modules() if not module.startswith(tuple(ROOMS.values()))]
    assert {module: libraries(PACKAGE / module) - required for module in plain} == {module: set() for module in plain}
    assert required == set().union(*(libraries(PACKAGE / module) & required for module in plain))


@pytest.mark.parametrize("extras", ROOMS, ids="+".join)
def test_an_extra_is_what_its_room_imports(extras):
    required, libraries_of = declared()
    given = set().union(*(libraries_of[extra] for extra in extras))
    used = set().union(*(libraries(PACKAGE / module) for module in reached(ROOMS[extras])))
    assert given - THROUGH_OTHERS == used - required


def test_every_extra_has_a_room():
    assert set(declared()[1]) == {"dev"}.union(*ROOMS)


def test_what_the_tests_import_is_declared():
    required, extras = declared()
    known = required.union(*extras.values()) | {"hearvalidator"} | BENCHES
    local = {path.stem for path in (ROOT / "tests").glob("*.py")}
    for path in (ROOT / "tests").glob("*.py"):
        assert libraries(path) - local <= known, path.name


def test_libraries_come_from_the_distributions_that_are_declared():
    installed = packages_distributions()
    for name, distribution in DISTRIBUTIONS.items():
        assert name not in installed or distribution in {found.lower() for found in installed[name]}


def test_no_message_advises_the_name_of_this_package():
    """It is installed from a clone: `pip install hear-jepa[...]` would fail, or fetch something else."""
    texts = [PACKAGE / module for module in modules()] + [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for path in texts:
        assert not re.search(r"pip install [^\n`]*hear[-_]jepa\[", path.read_text()), path


def test_every_planted_fault_has_its_line():
    gone = [fault for fault in mutants.FAULTS if fault.line not in (ROOT / fault.file).read_text(encoding="utf-8")]
    assert not gone
