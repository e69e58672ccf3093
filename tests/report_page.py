"""A configuration with three models, and what a page of the report holds."""

import json
from html.parser import HTMLParser

from kdseg.config import validate

MODELS = ("heavy", "alone", "fast")


def configuration(folder, **changes):
    def model(widths, **train):
        options = {"volumes": ["train"], "validate_on": "tune", **train}
        return {"network": {"kind": "unet", "widths": widths}, "train": options}

    distil = {"teacher": "heavy", "terms": [{"name": "affinity"}, {"name": "soft_affinity"}]}
    values = {
        "results": str(folder),
        "title": "Mouse <cube> & more",
        "volumes": {
            "train": {"raw": "a.zarr", "labels": "b.zarr"},
            "tune": {"raw": "a.zarr", "labels": "b.zarr"},
            "cube": {"raw": "a.zarr", "labels": "b.zarr", "baseline": "c.zarr"},
        },
        "models": {"heavy": model([8, 16]), "alone": model([4, 8]), "fast": model([4, 8], **distil)},
        "evaluate": {"volumes": ["cube"], "tune_on": "tune", "models": list(MODELS)},
    }
    return validate({**values, **changes})


class Page(HTMLParser):
    """The cells of the table of scores, images, charts, the text by id, and whether elements close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, html):
        super().__init__()
        self.cells, self.images, self.texts, self.open, self.links = {}, [], {}, [], []
        self.rows, self.specs = [], []
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "data", "action")]
        if tag == "img" or attrs.get("role") == "img":
            self.images.append(attrs)
        if "data-model" in attrs:
            self.rows.append((attrs["data-model"], attrs["data-volume"]))
        if tag not in self.VOID:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", {"type": "application/json"}):
            self.specs.append(json.loads(data))
        for _, attrs in self.open:
            if "id" in attrs:
                self.texts[attrs["id"]] = self.texts.get(attrs["id"], "") + data
            if "data-key" in attrs:
                key = (*self.rows[-1], attrs["data-key"])
                self.cells[key] = self.cells.get(key, "") + data
