"""The tiny model and recipe of the pipeline's tests."""

from tests.pipeline.conftest import tiny_model, write_recipe

__all__ = ["tiny_model", "write_recipe"]
