"""What mkdocs runs while it builds the site: pages from elsewhere, and links between all of them.

The site shows the files of the repository as they are. README.md becomes the first page, and a file
outside docs/ that a page links to becomes a page of its own, with its text.
"""

import json
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Where files of the repository, outside docs/, stand in the site."""

LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made: the reference, files outside docs/, the notebook."""
    made = reference.pages()
    made |= {place: (ROOT / path).read_text() for path, place in PLACES.items()}
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        made[f"{notebook.stem}.md"] = _notebook(notebook)
    pages = {f.src_uri: f.content_string for f in files.documentation_pages()} | made
    for page, text in pages.items():
        for path in _linked(page, text):
            place = _place(path)
            if place not in pages and place not in made and place not in files.src_uris:
                made[place] = _source(ROOT / path)
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if not target or "://" in target or here.startswith(("reference/", "source/")):
            return link[0]
        place = _place(normpath(f"{_origin(here).parent}/{target}"))
        return f"]({relpath(place, str(PurePosixPath(here).parent))}{anchor})"

    return LINK.sub(moved, markdown)


def _origin(page: str) -> PurePosixPath:
    """The file of the repository that a page shows."""
    known = {place: path for path, place in PLACES.items()}
    return PurePosixPath(known.get(page, f"docs/{page}"))


def _place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    return PLACES.get(path, f"source/{path}.md")


def _linked(page: str, text: str) -> set[str]:
    """Paths within the repository of the files outside docs/ that a page links to."""
    if page.startswith("reference/"):
        return set()
    targets = [link[1] for link in LINK.finditer(CODE.sub("", text))]
    paths = {normpath(f"{_origin(page).parent}/{t}") for t in targets if t and "://" not in t}
    return {path for path in paths if (ROOT / path).is_file() and not path.startswith("docs/")}


def _source(path: Path) -> str:
    """A file as a page; searches pass it over."""
    name = path.relative_to(ROOT)
    language = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}.get(path.suffix, "text")
    front = "---\nsearch:\n  exclude: true\n---\n"
    return f"{front}# {name}\n\n````{language}\n{path.read_text()}````\n"


def _notebook(path: Path) -> str:
    """A notebook as a page, and a link to the notebook itself."""
    cells = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    cells.append(f'<a href="{path.name}">This page as a notebook</a>')
    return "\n\n".join(cells) + "\n"
