"""`schemas` is the language: no I/O, no clock, no randomness, no environment."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = {
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "json",
    "pydantic",
    "re",
    "schemas",
    "typing",
    "zlib",
}
DRIVERS = {"redis", "sqlalchemy", "asyncpg", "httpx", "e2b", "anyio", "structlog"}
OUTER_PACKAGES = {"eventstore", "generator", "projector", "service"}


@pytest.mark.parametrize("path", sorted((ROOT / "schemas").glob("*.py")), ids=lambda p: p.name)
def test_a_file_of_the_language_imports_only_what_is_pure(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"now", "utcnow", "today"}, "a clock"
    assert {name.partition(".")[0] for name in imported} <= PURE


def test_importing_the_language_loads_no_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import schemas, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "schemas.job" in loaded
    assert not loaded & (DRIVERS | OUTER_PACKAGES)
