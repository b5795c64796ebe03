"""`enable_x64`, which JAX 0.7 has under another name."""

try:
    from jax import enable_x64
except ImportError:
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
