"""The rules of docs/architecture.md that a machine can check: imports point down, the wheel holds dgcomp alone."""

import ast
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up; a module may import from its own layer or a lower one, and never in a circle.
LAYERS = (
    ("kernels", "config", "schedule", "telemetry", "errors", "quant.octav", "quant.vector", "quant.estimators"),
    ("wire", "memory", "select", "quant", "sparse", "video"),
    ("exchange", "hwmodel"),
    (
        "reduce",
        "reduce_dense",
        "replicas",
        "passes",
        "sparse_step",
        "takeover",
        "stats",
        "compressor",
        "state",
        "hook",
        "attach",
        "local_adam",
        "advise",
        "hwmodel.profile",
    ),
    ("integrations",),
)


def _modules() -> dict[str, Path]:
    paths = [p for p in (ROOT / "dgcomp").rglob("*.py") if p.name != "__init__.py"]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in paths}


def _imports(path: Path) -> set[str]:
    """Names of dgcomp modules that a file imports when it is loaded (not those inside functions)."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dgcomp"):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("dgcomp")}
    return names


def _layer(module: str) -> int:
    """Height of a module; the longest matching prefix decides."""
    name = module.removeprefix("dgcomp").removeprefix(".")
    best, height = -1, len(LAYERS)
    for level, members in enumerate(LAYERS):
        for member in members:
            if (name == member or name.startswith(member + ".")) and len(member) > best:
                best, height = len(member), level
    return height


def test_imports_point_down() -> None:
    for module, path in _modules().items():
        for target in _imports(path):
            if target in _modules():
                assert _layer(target) <= _layer(module), f"{module} imports {target}, which lies above it"


def test_no_import_circles() -> None:
    graph = {module: _imports(path) & set(_modules()) for module, path in _modules().items()}
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join((*chain, module))
        if module not in done:
            for target in graph[module]:
                visit(target, (*chain, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_dgcomp_is_packaged() -> None:
    packages = find_packages(str(ROOT), include=["dgcomp", "dgcomp.*"])
    assert {name.split(".")[0] for name in packages} == {"dgcomp"}
    assert "dgcomp.wire" in packages


@pytest.mark.parametrize("name", ["quant", "sparse", "hwmodel"])
def test_top_level_links(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"dgcomp/{name}"
