"""The backbones that have an id, and the modules in which they are found. No torch, no transformers."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from backbones.spec import BackboneSpec

ENTRY_POINT_GROUP = "backbones.families"
SPECS: dict[str, BackboneSpec] = {}  # by id, in order of registration


@cache
def discover() -> None:
    """Imports every module of `backbones.families` and every installed entry point; each registers its specs."""
    families = importlib.import_module("backbones.families")
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"backbones.families.{module.name}")
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()


def registered() -> list[BackboneSpec]:
    """The specs of all ids, in order of registration."""
    discover()
    return list(SPECS.values())
