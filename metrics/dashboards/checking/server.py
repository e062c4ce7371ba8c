"""Questions to a Prometheus server, over its HTTP API."""

import json
import urllib.error
import urllib.parse
import urllib.request

from . import Failure

SECONDS = 20


class Unreachable(Failure):
    """The server does not answer, or not in time."""


class Refused(Exception):
    """The server says that a question is wrong; the message is its own."""


class Server:
    def __init__(self, address):
        self.url = f"http://{address}"

    def ask(self, path, **parameters):
        """The data of an answer."""
        pairs = [(name.replace("match", "match[]"), value) for name, value in parameters.items()]
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(pairs)}"
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            try:
                reason = json.load(error).get("error", str(error))
            except ValueError:
                # While it starts it says 503, and that in plain text.
                raise Unreachable(f"{self.url} does not answer yet: {error}") from None
            raise Refused(reason) from None
        except (OSError, ValueError) as error:
            raise Unreachable(f"{self.url} does not answer: {error}") from None

    def series_of(self, expression):
        """How many series an expression has now."""
        data = self.ask("query", query=expression)
        return 1 if data["resultType"] in ("scalar", "string") else len(data["result"])

    def label_values(self, label, selector=None):
        path = f"label/{urllib.parse.quote(label)}/values"
        return self.ask(path, match=selector) if selector else self.ask(path)

    def rules(self):
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def failing_targets(self):
        """Address of each target that could not be scraped, and why."""
        for target in self.ask("targets")["activeTargets"]:
            if target["health"] != "up":
                yield target["scrapeUrl"], target["lastError"] or "not scraped yet"

    def page(self, path):
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError as error:
            raise Unreachable(f"{self.url}{path} does not answer: {error}") from None
