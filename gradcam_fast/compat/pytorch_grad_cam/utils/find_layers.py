"""Searches for modules in a model, and replacements of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

__all__ = [
    "find_layer_predicate_recursive",
    "find_layer_types_recursive",
    "replace_all_layer_type_recursive",
    "replace_layer_recursive",
]


def find_layer_predicate_recursive(model: nn.Module, predicate: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The modules inside the model for which the predicate is true, parents before their children.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3)))
        >>> len(find_layer_predicate_recursive(model, lambda module: isinstance(module, nn.Conv2d)))
        2
    """
    return [
        found
        for child in model.children()
        for found in [*([child] if predicate(child) else []), *find_layer_predicate_recursive(child, predicate)]
    ]


def find_layer_types_recursive(model: nn.Module, layer_types: Iterable[type[nn.Module]]) -> list[nn.Module]:
    """The modules inside the model whose type is one of these; subclasses are other types."""
    types = tuple(layer_types)
    return find_layer_predicate_recursive(model, lambda module: type(module) in types)


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: nn.Module) -> bool:
    """Put a module in the first place where another is; whether there was one."""
    for name, child in model.named_children():
        if child is old_layer:
            setattr(model, name, new_layer)
            return True
        if replace_layer_recursive(child, old_layer, new_layer):
            return True
    return False


def replace_all_layer_type_recursive(model: nn.Module, old_layer_type: type[nn.Module], new_layer: nn.Module) -> None:
    """Put one module in the place of all that are of a type."""
    for name, child in list(model._modules.items()):
        if isinstance(child, old_layer_type):
            model._modules[name] = new_layer
        elif child is not None:
            replace_all_layer_type_recursive(child, old_layer_type, new_layer)
