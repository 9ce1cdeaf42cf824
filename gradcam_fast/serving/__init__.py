"""An HTTP service that explains with every prediction: KServe's v1 protocol, a page for people, and metrics.

`create_app` makes the FastAPI application, `run` serves it on one machine, and `deployment` (with Ray Serve) on many.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app as create_app
    from .ray_deployment import deployment as deployment
    from .ray_deployment import run_on_ray as run_on_ray
    from .server import run as run
    from .settings import ServiceSettings as ServiceSettings

__all__ = ["ServiceSettings", "create_app", "deployment", "run", "run_on_ray"]

_MODULES = {
    "create_app": ".app",
    "deployment": ".ray_deployment",
    "run_on_ray": ".ray_deployment",
    "run": ".server",
    "ServiceSettings": ".settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name], __name__), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = "serve-ray" if package == "ray" else "serve"
        raise ImportError(
            f"the service needs {package}, which is not installed; run pip install 'gradcam-fast[{extra}]'"
        ) from error
