"""Runs of planted margins whose images are each of one colour, and a reader of their reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from analogy.results.writing import to_json

VOID = {"meta", "img", "input", "link", "br", "hr"}


def margin(job) -> float:
    """Below 0 at alpha 0, near 0 at 0.5, above 0 at 1; a little different for every image."""
    spread = sum(job.pair.id.encode()) % 7 + 2 * job.seed
    return -0.2 + 0.4 * job.alpha + 0.01 * spread


def color(job) -> tuple[int, int, int]:
    """The colour of a job's image, different for every job of a small run."""
    return 40 + sum(job.pair.id.encode()) % 160, int(100 * job.alpha) + 20, 60 * job.seed + 30


def picture(job, size: int):
    return np.full((size, size, 3), color(job), np.uint8)


def draw(study, jobs=None, **changed):
    """As :func:`draw_results`, but as JSON."""
    return to_json(draw_results(study, jobs, **changed))


def draw_results(study, jobs=None, *, margin=margin, faults=()):
    """Put images and scores of ``jobs`` into a study's folder; those of ``faults`` failed. Returns
    the study's results.
    """
    jobs = study.jobs() if jobs is None else jobs
    images = np.stack([picture(job, study.config.size) for job in jobs])
    study.record(None)
    study.folder.add_images(jobs, images, 1.0, faults={jobs.index(job): "black" for job in faults})
    scored = [job for job in jobs if job not in faults]
    rows = [(margin(job), 0.0, margin(job)) for job in scored]
    study.folder.add_scores(scored, study.judge.fingerprint, rows, 0.5)
    return study.results()


class Node:
    """An element of a page."""

    def __init__(self, tag: str, attrs: dict[str, str]) -> None:
        self.tag, self.attrs = tag, attrs
        self.children: list[Node | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attrs[name]

    @property
    def classes(self) -> list[str]:
        return self.attrs.get("class", "").split()

    @property
    def text(self) -> str:
        parts = [c if isinstance(c, str) else c.text for c in self.children]
        return " ".join("".join(parts).split())

    def all(self, tag: str | None = None, cls: str | None = None) -> Iterator[Node]:
        """Every element below, in the page's order, of a tag and a class if given."""
        for child in self.children:
            if isinstance(child, Node):
                if tag in (None, child.tag) and (cls is None or cls in child.classes):
                    yield child
                yield from child.all(tag, cls)

    def id(self, name: str) -> Node:
        """The one element below that has this id."""
        [found] = [node for node in self.all() if node.attrs.get("id") == name]
        return found

    def rows(self) -> list[list[Node]]:
        """A table's body, as its rows' cells."""
        [body] = self.all("tbody")
        return [[cell for cell in row.all() if cell.tag in ("td", "th")] for row in body.all("tr")]


class Page(HTMLParser):
    """A page as a tree; a tag that is closed wrongly is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [node.tag for node in self._open]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag, attrs):
        self._open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        self._open[-1].children.append(data)


def read_page(text: str) -> Node:
    return Page(text).root


def pixels(uri: str):
    """What a ``data:`` URI shows, uint8 HWC, and its media type."""
    head, _, data = uri.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return np.asarray(image.convert("RGB")), head
