"""Which optional packages are installed."""

from importlib.util import find_spec

INSTALL_ONNX = (
    "pip install 'hsakd_jax[onnx]' in an environment of its own, since it may change the versions of JAX and Orbax"
)


def is_installed(*modules: str) -> bool:
    """Whether Python finds all of these modules; imports none of them."""
    return all(map(find_spec, modules))


def report_is_installed() -> bool:
    """Whether the packages of the extra `report` are there."""
    return is_installed("matplotlib", "jinja2")
