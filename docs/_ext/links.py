"""Links of pages that are read on a code host as well: to files outside of docs/, and from names to the reference."""

from __future__ import annotations

import os.path
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

from docs._ext.reference import DOCS, functions, public

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

ROOT = DOCS.parent
# What stands beside docs/, and is a page of the site.
PAGES = {"README.md": "start", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


@cache
def ambiguous() -> frozenset[str]:
    """Names of functions that are words of something else as well: an intermediate, an argument, a component."""
    of_specifications = (each.specification for each in functions().values())
    return frozenset(
        name
        for each in of_specifications
        for names in (each.arguments, each.parameters, each.components, each.intermediates)
        for name in names
    )


def meant(text: str) -> str | None:
    """The public name that a piece of code in a page is, called or not."""
    found = re.fullmatch(r"((?:refloss\.)?[\w.]+)(?:\(.*\))?", text)
    if found is None:
        return None
    name = found[1]
    if name in functions() and name not in ambiguous():
        name = f"refloss.{name}"
    return name if name in public() else None


class Links(SphinxTransform):
    """Code that is a public name becomes a link to it; links out of docs/ one to a page, a download or nothing."""

    default_priority = 700

    def apply(self, **_: object) -> None:
        """Of one page."""
        for literal in list(self.document.findall(nodes.literal)):
            name = None if _is_linked(literal) else meant(literal.astext())
            if name is not None:
                self._refer(literal, name)
        for link, path in list(self._out_of_docs()):
            self._resolve(link, path)

    def _refer(self, literal: nodes.literal, name: str) -> None:
        reference = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=name, refexplicit=True, refdoc=self.env.docname
        )
        literal.replace_self(reference)
        reference += literal

    def _out_of_docs(self) -> Iterator[tuple[nodes.Element, Path]]:
        """Links to what is no page, and the file or folder of the repository that each means."""
        here = (DOCS / self.env.docname).parent
        for kind in (addnodes.pending_xref, addnodes.download_reference):
            for link in self.document.findall(kind):
                target = link["reftarget"].partition("#")[0]
                if link.get("reftype") != "myst" or target in self.env.all_docs or target in self.env.found_docs:
                    continue
                # What another file includes is relative to that one, which stands in the root.
                for path in (here / target, ROOT / target, Path(f"{target}.md")):
                    if target and path.exists():
                        yield link, path.resolve()
                        break

    def _resolve(self, link: nodes.Element, path: Path) -> None:
        page = PAGES.get(path.relative_to(ROOT).as_posix())
        if page is not None:
            heading = link.get("reftargetid") or link["reftarget"].partition("#")[2] or None
            told = {"reftype": "myst", "reftarget": page, "reftargetid": heading, "refexplicit": True}
            link.replace_self(
                addnodes.pending_xref("", *link.children, refdomain="doc", refdoc=self.env.docname, **told)
            )
        elif path.is_dir():
            # There is no page of a folder: its name can be found in a clone.
            link.replace_self(list(link.children))
        elif isinstance(link, addnodes.pending_xref):
            target = os.path.relpath(path, (DOCS / self.env.docname).parent)
            file = addnodes.download_reference("", *link.children, refdomain=None, reftype="myst", refexplicit=True)
            file["reftarget"], file["refdoc"] = target, self.env.docname
            link.replace_self(file)


def _is_linked(node: nodes.Node) -> bool:
    """Whether a node is in a link or a heading already."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.reference | addnodes.pending_xref | addnodes.download_reference | nodes.title):
            return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's way in."""
    app.add_transform(Links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
