"""Which optional packages are installed, and how to install others."""

from importlib.util import find_spec


def install(extra: str) -> str:
    """The command that installs an extra.

    In another environment, pip would look for the package's name at PyPI, where it could be another's package.
    """
    return f"pip install -e '.[{extra}]' in the checkout of hsakd_jax"


INSTALL_ONNX = f"{install('onnx')}, into another environment, since it may change the versions of JAX and Orbax"


def is_installed(*modules: str) -> bool:
    """Whether Python finds all of these modules; imports none of them."""
    return all(map(find_spec, modules))


def report_is_installed() -> bool:
    """Whether the packages of the extra `report` are there."""
    return is_installed("matplotlib", "jinja2")
