"""README.md as the package's description, without links that would be broken on a package index.

A build hook of hatchling (``[tool.hatch.metadata.hooks.custom]`` in pyproject.toml). Links to files
of the repository become absolute if ``[project.urls]`` has ``Repository``. Without it, links are
replaced by the file's name, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_ABSOLUTE = re.compile(r"[a-z][a-z+.-]*:|#")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class PackageReadme(MetadataHookInterface):
    """Adds ``readme`` to the package's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the description to the project's metadata."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        address = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": described(text, address)}


def described(text: str, address: str | None) -> str:
    """Markdown without relative links. ``address``: the repository's URL, None if unknown."""

    def absolute(link: re.Match[str]) -> str:
        picture, words, target = link["picture"], link["text"], link["target"]
        if _ABSOLUTE.match(target):
            return link[0]
        if address is not None:
            kind = "raw" if picture else "blob"
            return f"{picture}[{words}]({address.rstrip('/')}/{kind}/HEAD/{target})"
        if picture:
            return ""
        file = target.partition("#")[0]
        return words if file in words else f"{words} (`{file}`)"

    parts = _FENCED.split(text)  # every second part is a block of code
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", _LINK.sub(absolute, part)) for part in parts[::2]]
    return "".join(parts)
