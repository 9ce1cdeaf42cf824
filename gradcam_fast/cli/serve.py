"""The subcommand ``serve``: its options, and the models and settings built from them."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..methods import METHODS
from ..pipeline.network_source import NetworkSource
from . import options as cli_options
from .console import complain, tell
from .options import Option, finite, grouped, positive, share

if TYPE_CHECKING:
    from types import SimpleNamespace

    from ..serving import ServiceSettings

__all__ = ["serve"]

ADDRESS = grouped(
    "Address",
    Option(["--host"], metavar="ADDRESS", default="127.0.0.1", help="Address to bind; 0.0.0.0 is every network."),
    Option(["--port"], metavar="N", type=click.IntRange(0, 65535), default=8080, help="Port; 0 takes a free one."),
    Option(["--no-auth"], is_flag=True, help="Let everybody in, on other addresses than 127.0.0.1, too."),
    Option(
        ["--allowed-host", "allowed_hosts"],
        metavar="NAME",
        multiple=True,
        help="Name under which clients reach the service; may be repeated.  [default: any; on 127.0.0.1 its names]",
    ),
)
MODELS = grouped(
    "Network",
    Option(["--name"], metavar="NAME", help="Name of the model in addresses.  [default: that of --model]"),
    Option(
        ["--models"],
        metavar="FILE",
        type=Path,
        help='Several models: JSON such as {"cats": {"model": "resnet18", "weights": "cats.pth"}}, with the options of '
        "this group as members.",
    ),
)
LIMITS = grouped(
    "Limits",
    Option(["--max-requests"], metavar="N", type=positive, default=128, help="Requests at a time; more: 503."),
    Option(["--max-body"], metavar="BYTES", type=positive, default=32 * 2**20, help="Bytes of a request; more: 413."),
    Option(
        ["--max-pixels"],
        metavar="N",
        type=positive,
        default=50_000_000,
        help="Refuse photos with more pixels; each core that decodes needs up to 20 bytes of memory a pixel.",
    ),
    Option(["--max-photos"], metavar="N", type=positive, default=16, help="Photos of one request."),
    Option(["--deadline"], metavar="SECONDS", type=finite, default=60, help="Give a request up after this time."),
    Option(["--drain"], metavar="SECONDS", type=finite, default=2, help="Take requests this long after SIGTERM."),
    Option(
        ["--methods"],
        metavar="NAME[,NAME...]",
        help="Methods that clients may ask for.  [default: those of one forward and one backward]",
    ),
)
SPEED = grouped(
    "Speed",
    Option(["--max-batch"], metavar="B", type=positive, help="Photos in a batch.  [default: 4 on a CPU, 32 on a GPU]"),
    Option(["--threads"], metavar="N", type=positive, help="Threads of the network on a CPU.  [default: one per core]"),
)
CLUSTER = grouped(
    "Cluster",
    Option(["--ray"], is_flag=True, help="Serve by Ray Serve, on the cluster of RAY_ADDRESS or on one started here."),
    Option(["--replicas"], metavar="N", type=positive, default=1, help="With --ray: processes that have the models."),
)
MONITORING = grouped(
    "Monitoring",
    Option(
        ["--sample-rate"],
        metavar="SHARE",
        type=share,
        default=0,
        help="Share of predictions that are explained as well, for the metrics.",
    ),
    Option(
        ["--when"],
        metavar="MODULE:FUNCTION",
        help="Of these, explain only those for which this function of the logits (B,N) is True.",
    ),
)


@click.command(
    cls=cli_options.Command,
    params=[
        *cli_options.NETWORK, *MODELS, *ADDRESS, *LIMITS, *SPEED, *cli_options.DEVICE, *CLUSTER,
        *MONITORING, cli_options.DEBUG,
    ],
    epilog="""\
Examples:
  gradcam-fast serve
  gradcam-fast serve --model resnet50.pt2 --port 9000
  GRADCAM_FAST_API_KEY=... gradcam-fast serve --host 0.0.0.0
  curl localhost:8080/v1/models/efficientnet_lite0:explain \\
    -H 'Content-Type: image/jpeg' -H 'Accept: image/png' \\
    --data-binary @cat.jpg -o cat.png

  The address of the page is printed when the service is ready. It speaks
  KServe's v1 protocol; /docs lists it, /metrics is for Prometheus. SIGTERM and
  Ctrl-C stop it when all requests are answered; SIGHUP loads the models again.

Exit codes:
  0    the service was stopped
  2    an option is wrong, the port is taken, or a model cannot be loaded;
       standard error says which
""",
)  # fmt: skip
def serve(options: SimpleNamespace) -> int:
    """Serve predictions and heatmaps over HTTP, with a page for browsers.

    Without a key, only this machine reaches the service. With the environment variable GRADCAM_FAST_API_KEY, clients
    must send the key as 'Authorization: Bearer KEY'.
    """
    from .. import serving

    run = serving.run_on_ray if options.ray else serving.run  # says which package is missing
    from ..serving.security import KEY_VARIABLE, check_exposure

    key = os.environ.get(KEY_VARIABLE)
    check_exposure(options.host, key, no_auth=options.no_auth)
    settings = settings_of(options, key)
    sources = sources_of(options)
    if options.no_auth and key is None:
        complain(f"warning: everybody who reaches {options.host} may use this service (--no-auth)")
    where: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.ray:
        where["replicas"] = options.replicas
    run(sources, settings, on_ready=lambda address: tell(f"ready at {address}"), **where)
    return 0


def sources_of(options: SimpleNamespace) -> dict[str, NetworkSource]:
    """The models to serve, by name.

    Raises:
        ValueError: the file of models cannot be read, or says something unknown.
    """
    plain = cli_options.source_of(options)
    if options.models is None:
        return {options.name or _name_of(plain.model): plain}
    try:
        described = json.loads(options.models.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--models: {options.models} cannot be read ({error})") from None
    if not isinstance(described, dict) or not described or not all(isinstance(one, dict) for one in described.values()):
        raise ValueError(f'--models: {options.models} has no models; write {{"name": {{"model": "resnet18"}}, ...}}')
    placed = {"device": plain.device, "dtype": plain.dtype}
    sources = {}
    for name, members in described.items():
        try:
            sources[name] = NetworkSource.of(placed | members)
        except ValueError as error:
            raise ValueError(f"--models: {name}: {error}") from None
    return sources


def _name_of(model: str) -> str:
    """``resnet50`` for ``models/resnet50.pt2``, ``timm:resnet50`` and ``package.module:resnet50``."""
    return Path(model).name.removesuffix(".pt2").rpartition(":")[2]


def settings_of(options: SimpleNamespace, key: str | None) -> ServiceSettings:
    """The settings that the options name.

    Raises:
        ValueError: a number out of its range, or an unknown method or function.
    """
    from ..serving import ServiceSettings
    from ..serving.security import LOOPBACK_NAMES, is_loopback

    chosen: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("max_requests", "max_body", "max_pixels", "max_photos", "deadline", "drain", "max_batch")
    }
    if options.threads:
        chosen["threads"] = options.threads
    if options.methods:
        chosen["methods"] = tuple(name.strip() for name in options.methods.split(","))
        if unknown := [name for name in chosen["methods"] if name not in METHODS]:
            raise ValueError(f"--methods: {unknown[0]!r} is unknown; choose from {', '.join(METHODS)}")
    if options.allowed_hosts:
        chosen["allowed_hosts"] = options.allowed_hosts
    elif is_loopback(options.host):
        chosen["allowed_hosts"] = LOOPBACK_NAMES
    if options.when:
        chosen["when"] = _function(options.when)
    return ServiceSettings(api_key=key, sample_rate=options.sample_rate, **chosen)


def _function(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise ImportError(f"--when: importing {module_name!r} failed ({error})") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise ValueError(f"--when: {module_name} has no function {function_name!r}; give MODULE:FUNCTION")
    return function
