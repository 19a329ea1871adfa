"""Imports go downward: the rules of the layout hold in every module, and a broken one is found."""

import ast
import re
import sys

import pytest
from conftest import SRC

COMMANDS = {"tune_hyper_parameters", "train", "evaluate", "predict", "report", "benchmark"}
PACKAGES = {"zeta", "model", "training", "tuning", "reporting", "common"}
ALLOWED = {  # of ours and of others: what the modules of a package, or a module on its own, may import besides itself
    "zeta": {"numpy", "mpmath"},
    "transformer": {"torch"},
    "common": {"torch", "tqdm"},
    "zeros_db": {"zeta", "mpmath"},
    "model": {"transformer", "zeta", "common", "torch", "numpy", "mpmath"},
    "zero_values": {"zeros_db", "zeta", "model.tokenizer", "common", "numpy", "mpmath"},
    "data_utils": {"zero_values", "zeta", "model.tokenizer", "common", "torch", "numpy"},
    "training": {"model", "data_utils", "common", "torch", "numpy", "mpmath"},
    "tuning": {"training", "model", "data_utils", "transformer", "zeta", "common", "torch", "numpy"},
    "reporting": {"model", "zeta", "common", "numpy", "matplotlib"},
    **dict.fromkeys(COMMANDS, {*PACKAGES, "data_utils", "transformer", "torch", "numpy", "tqdm"}),
}
ALLOWED["benchmark"] = ALLOWED["benchmark"] | {"zero_values"}


def sources():
    """{dotted name of a module: its source}."""
    return {".".join(path.relative_to(SRC).with_suffix("").parts): path.read_text() for path in SRC.rglob("*.py")}


def imported_modules(source):
    """Yield (how it is imported, dotted name of the module) for each import of a source, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (("import", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = {node.module} if node.module not in PACKAGES else {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (("from", name) for name in parents)


def broken_rules(modules):
    """Return a sentence for each import in {name: source} that breaks a rule."""
    broken = []
    for module, source in modules.items():
        home = module.split(".")[0]
        for how, name in imported_modules(source):
            root = name.split(".")[0]
            if how == "import" and root in PACKAGES:
                broken.append(f"{module}: import {name}: packages are imported by `from {root}... import`")
            if root in sys.stdlib_module_names or root == home or name in ALLOWED[home] or root in ALLOWED[home]:
                continue
            if module == "common.devices" and root == "torch_xla":  # found or not, at run time
                continue
            broken.append(f"{module} imports {name}")
    return broken


def test_every_import_goes_downward():
    assert broken_rules(sources()) == []


def test_every_package_says_what_it_is_about():
    for package in PACKAGES:
        assert ast.get_docstring(ast.parse((SRC / package / "__init__.py").read_text())), package


def test_what_the_documents_name_is_there():
    """Files that they link to, and scripts in their commands."""
    root = SRC.parents[1]
    for document in (root / "readme.md", *(root / "rzz").glob("*.md"), SRC / "readme.md"):
        text = document.read_text()
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert all((document.parent / link).exists() for link in links), (document, links)
        scripts = re.findall(r"rzz/[\w/]+\.(?:py|sh|ipynb)", text)
        assert all((root / script).exists() for script in scripts), (document, scripts)


@pytest.mark.parametrize("module, line", [
    ("zeta.zeros", "from common.logs import log"),
    ("zeta.z_grid", "import torch"),
    ("transformer", "from model.tokenizer import PAD"),
    ("common.files", "from zeta.riemann_siegel import theta"),
    ("zeros_db", "from common.config import UserError"),
    ("model.metrics", "from data_utils import test_zeros"),
    ("model.network", "import zeros_db"),
    ("data_utils", "from model.network import build_model"),
    ("data_utils", "from training.run import TrainingRun"),
    ("training.run", "from tuning.cost import training_hours"),
    ("training.run", "import zeros_db"),
    ("tuning.display", "from reporting.pages import Table"),
    ("reporting.sections", "from training.checkpoints import latest_checkpoint"),
    ("reporting.sections", "from data_utils import test_zeros"),
    ("evaluate", "from train import main"),
    ("training.run", "def later():\n    from evaluate import main"),
    ("common.cli", "import report"),
    ("evaluate", "import zeros_db"),
    ("evaluate", "import model.network"),
])  # fmt: skip
def test_an_import_that_breaks_a_rule_is_found(module, line):
    modules = sources()
    modules[module] += f"\n{line}\n"
    assert len(broken_rules(modules)) == 1
