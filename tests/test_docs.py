"""What the documents say must be what the code does."""

import re
from pathlib import Path

import pytest

from dcamt.methods import METHODS
from dcamt.networks import BACKBONES

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_worked_example_is_the_real_file() -> None:
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    example = re.findall(r"```python\n(class MeanTeacher.*?)\n```", page, re.DOTALL)
    assert len(example) == 1
    assert example[0] in (ROOT / "src" / "dcamt" / "methods" / "mean_teacher.py").read_text()


def test_the_worked_backbone_is_the_real_file() -> None:
    page = (ROOT / "docs" / "adding-a-backbone.md").read_text()
    examples = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    assert examples[0] + "\n" == (ROOT / "src/dcamt/networks/segresnet.py").read_text()
    assert examples[1] in (ROOT / "src/dcamt/networks/__init__.py").read_text()


def test_every_method_and_backbone_has_a_row() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    for name in (*METHODS, *BACKBONES):
        assert f"\n| `{name}` | " in page, f"docs/methods.md has no row for {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_test_that_is_named_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 30
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def test_every_line_of_a_reliability_table_names_a_test() -> None:
    faults, strangers, *_ = (ROOT / "docs" / "reliability.md").read_text().split("\n## ")[1:]
    for line in (faults + strangers).splitlines():
        if line.startswith("| ") and not line.startswith(("| fault |", "| bad input |")):
            assert re.search(r"`tests/[^`]+::\w+` \|$", line), line


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    named = set(re.findall(r": ([\w/-]+\.md)$", menu, re.MULTILINE))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    made = {"index.md", "first-steps.md", "contributing.md", "security.md", "changelog.md"}
    made |= {f"reference/{name}.md" for name in ("commands", "configuration", "python")}
    assert named == pages | made
