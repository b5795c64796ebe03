"""Which optional packages are installed."""

from importlib.util import find_spec


def report_is_installed() -> bool:
    """Whether the packages of the extra `report` are there."""
    return all(map(find_spec, ("matplotlib", "jinja2")))
