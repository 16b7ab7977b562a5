"""docs/differences.md: every row has its reason and a test that exists."""

import ast
import re

import pytest

from conftest import HERE, ROOT

pytestmark = pytest.mark.core

ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "differences.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| **") and not line.startswith("| |")
]


def test_there_are_rows():
    assert len(ROWS) > 40
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_row(row):
    assert row[1]
    assert row[2]
    match = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", row[4])
    assert match, row[4]
    file, name = match.groups()
    tree = ast.parse((HERE / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
