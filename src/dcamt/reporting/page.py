"""Pages that stand alone: their style, scripts and data are in the file, and nothing is fetched."""

import base64
import gzip
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dcamt.escape import printable

HERE = Path(__file__).parent
SCRIPTS = ("curves.js", "loading.js", "overlays.js", "panels.js", "viewer.js")


def render_page(template: str, *, served: bool = False, **values: Any) -> str:
    """An HTML page of a template of this folder, with the viewer's scripts in it.

    Strings of ``values`` are escaped. The page's content security policy allows its own scripts and
    style by their hashes and nothing else; a page that is ``served`` may also ask its own server.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = _text("page.css") + _text("viewer.css")
    script = "".join(map(_text, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {_hash(_library())}; "
        f"style-src {_hash(style)}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    policy += "; connect-src 'self'" if served else ""
    return environment.get_template(template).render(
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        library=_packed_library(),
        served=served,
        **values,
    )


def encoded(data: bytes) -> str:
    """Bytes as text for a page: compressed (gzip), then base64. Equal bytes give equal text."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """NiiVue, its licence and the licences of what it holds before it."""
    return f"/*\n{_text('niivue/LICENSES.txt')}*/\n{_text('niivue/niivue.umd.js')}"


@cache
def _packed_library() -> str:
    return encoded(_library().encode("utf-8"))


def _hash(text: str) -> str:
    """How a content security policy names a script or a style."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
