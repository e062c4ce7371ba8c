"""What can be said of an expression without running it."""

import re

STRING = re.compile(r'"(?:\\.|[^"\\])*"')
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SET_OPERATOR = re.compile(r"(and|or|unless)\b(\s*(on|ignoring)\s*\([^)]*\))?")
COMPARISON = re.compile(r"==|!=|>=|<=|>|<")
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")

# What Prometheus adds to the name of a histogram.
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def names_in(expression):
    """Names of this project's metrics and recorded series in it."""
    bare = STRING.sub('""', expression)
    return {name for name in NAME.findall(bare) if "vfio_ccw_" in name}


def names_in_template(text):
    """The same of a template, whose expressions are within its strings."""
    return set(re.findall(r"\w+:vfio_ccw_\w+:\w+|\bvfio_ccw_\w+", text))


def documented_names(text):
    """Names of metrics in a document."""
    return set(re.findall(r"\bvfio_ccw_\w+", text))


def is_documented(name, documented):
    """Whether a document has a metric, be it under the name of the whole histogram."""
    wholes = {name.removesuffix(part) for part in HISTOGRAM_PARTS}
    return bool(({name} | wholes) & documented)


def compared(alert):
    """What an alert compares: the left side of each of its comparisons, without the thresholds.

    They have values also while all is well, which the alert has not. Whole expressions in
    parentheses are left as they are.
    """
    return [left_of_comparison(part) for part in split(alert)]


def split(expression):
    """The operands of `and`, `or` and `unless` that stand outside of all parentheses."""
    parts, begin = [], 0
    for position in outside_of_parentheses(expression):
        # Not in the middle of a name.
        if position < begin or (position > 0 and re.match(r"[\w:]", expression[position - 1])):
            continue
        if operator := SET_OPERATOR.match(expression, position):
            parts.append(expression[begin:position])
            begin = operator.end()
    return [part.strip() for part in [*parts, expression[begin:]]]


def left_of_comparison(expression):
    for position in outside_of_parentheses(expression):
        if COMPARISON.match(expression, position):
            return expression[:position].strip()
    return expression


def outside_of_parentheses(expression):
    """Positions that are in no parentheses, braces, brackets or strings."""
    blind = STRING.sub(lambda string: "_" * len(string[0]), expression)
    depth = 0
    for position, character in enumerate(blind):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0:
            yield position


def substitute(expression, variables):
    """The expression as Grafana would send it. Raises KeyError for a variable that is not there."""
    return VARIABLE.sub(lambda found: variables[found[1] or found[2]], expression)


def one_of(values):
    """A regular expression, within a string, that matches the values: what Grafana makes of several."""
    escaped = [re.escape(value).replace("\\-", "-").replace("\\", "\\\\") for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
