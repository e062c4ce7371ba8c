"""What is in a dashboard's JSON: variables, panels, and what is asked for each."""

import json
import re

from . import Failure
from .expressions import one_of

LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+),\s*(?P<label>\w+)\)$")

MOST_PANELS = 12


class Dashboard:
    def __init__(self, path):
        self.name = path.name
        self.json = json.loads(path.read_text())
        self.panels = self.json["panels"]

    def mistakes(self):
        """What an operator would miss."""
        if len(self.panels) > MOST_PANELS:
            yield f"{len(self.panels)} panels, which nobody looks through; {MOST_PANELS} at most"
        if len({panel["id"] for panel in self.panels}) != len(self.panels):
            yield "two panels have the same id"
        for panel in self.panels:
            if len(panel.get("description", "")) < 40:
                yield f"panel '{panel['title']}' does not say what to do when it looks bad"
            if not panel["fieldConfig"]["defaults"].get("unit"):
                yield f"panel '{panel['title']}' has no unit"
            for thing in (panel, *panel["targets"]):
                if thing["datasource"]["uid"] != "${datasource}":
                    yield f"panel '{panel['title']}' is tied to one data source"

    def variables(self):
        """Name, selector and label of each variable that Grafana asks Prometheus for."""
        for variable in self.json["templating"]["list"]:
            if variable["type"] != "query":
                continue
            found = LABEL_VALUES.match(variable["query"]["query"])
            if not found:
                raise Failure(f"{self.name}: variable {variable['name']} is not label_values(selector, label)")
            yield variable, found["selector"], found["label"]

    def queries(self):
        """Panel, letter and expression of each query."""
        for panel in self.panels:
            for target in panel["targets"]:
                yield panel["title"], target["refId"], target["expr"]


def chosen(variable, values):
    """What Grafana puts in place of a variable: all of its values, or the first where only one can be."""
    return one_of(values) if variable["multi"] else values[0]
