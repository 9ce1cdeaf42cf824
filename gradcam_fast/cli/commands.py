"""The subcommands of ``gradcam-fast``: their help, and what each of them does.

Each subcommand imports the packages that it needs when it runs, so that its help works without them.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from .. import Explainer, __version__
from ..layers import list_layers
from . import options as cli_options
from .boxes import boxes
from .console import FEW_PHOTOS, ProgressBar, complain, tell
from .evaluate import evaluate
from .exit_codes import EXIT_CODES
from .serve import serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

FORMAT_NAMES = ("overlay", "panels", "npy")


@click.group(
    cls=cli_options.Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80, "show_default": True},
    epilog=f"""\
Examples:
  gradcam-fast demo
  gradcam-fast explain cat.jpg --target tabby --method layercam
  gradcam-fast explain photos/ --format overlay,parquet --out maps
  gradcam-fast explain photos/ --format overlay,parquet --out maps --resume
  gradcam-fast render maps/maps.parquet --colormap viridis --out pictures
  gradcam-fast evaluate photos/ --methods gradcam,layercam
  gradcam-fast boxes photos/ -o boxes.json
  gradcam-fast serve --model resnet50.pt2 --port 8080
  gradcam-fast layers --model resnet18 --weights resnet18.safetensors
  gradcam-fast export --model resnet50 --weights resnet50.pth -o resnet50.pt2
  gradcam-fast --library cpu    (prints the path of the compiled operator)

{EXIT_CODES}""",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def gradcam_fast() -> None:
    """Show where a network looks in a photo, with Grad-CAM heatmaps."""


gradcam_fast.add_command(evaluate)
gradcam_fast.add_command(boxes)


@gradcam_fast.command(params=[*cli_options.out_option("gradcam-fast-demo"), cli_options.DEBUG], epilog=EXIT_CODES)
def demo(options: SimpleNamespace) -> int:
    """Explain a few photos that are already installed.

    The photos are in other packages: a cat and a cup of coffee in scikit-image; a dog and a drum in foolbox, if it is
    installed. The network is EfficientNet-Lite0, trained on ImageNet. All of this works offline.

    For each photo, the five most probable classes are printed, and a picture is written: photo, heatmap and overlay, in
    one row for each of the two most probable classes. At the end, the command prints which backend ran, and how long
    the explanations took compared with the predictions alone.
    """
    from . import demo

    cli_options.check_folder(options.out)
    return demo.run(options.out)


@gradcam_fast.command(
    params=[
        click.Argument(["photos"], metavar="PATH...", nargs=-1, required=True, help="Photos, folders or patterns."),
        *cli_options.NETWORK,
        *cli_options.grouped("Explanation", cli_options.TOPK),
        *cli_options.EXPLANATION,
        *cli_options.out_option("gradcam-fast-pictures"),
        *cli_options.format_option(
            (*FORMAT_NAMES, "parquet"), "overlay, panels, npy or parquet, or several with commas; see below."
        ),
        *cli_options.PICTURES,
        *cli_options.DEVICE,
        *cli_options.batch_size_option(32),
        *cli_options.WORKERS,
        *cli_options.ENGINE,
        *cli_options.MESSAGES,
        cli_options.DEBUG,
    ],
    epilog=f"""\
Examples:
  gradcam-fast explain cat.jpg dog.png
  gradcam-fast explain cat.jpg --target "tiger cat" --method hirescam
  gradcam-fast explain photos/ --model resnet50 --weights resnet50.pth
  gradcam-fast explain photos/ --format overlay,parquet --out maps --resume
  gradcam-fast explain photos/ --model resnet50.pt2
  gradcam-fast explain photos/ --engine ray --format parquet --out maps

Photos:
  AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TGA, TIFF and WebP, as far as
  Pillow reads them, in colour or grayscale. Photos are turned
  upright by their EXIF orientation, transparency becomes white, and of an
  animation the first frame is used. Some networks see only the middle of a
  photo; the pictures then show only that part. In folders, hidden files and
  pictures of this program are ignored.

Formats:
  overlay  DIR/NAME-gradcam.overlay.jpg: the heatmap over the photo. Several
           classes have one file each: .overlay-1.jpg, .overlay-2.jpg, ... The
           default for more than {FEW_PHOTOS} photos.
  panels   DIR/NAME-gradcam.jpg: photo, heatmap and overlay side by side, in one
           row for each class, with its name and probability. Slower than
           overlay. The default for up to {FEW_PHOTOS} photos.
  npy      DIR/NAME-gradcam.npy: float32 (classes, height, width) in [0,1], at
           the size of the network's input.
  parquet  DIR/maps.parquet: a folder that pandas.read_parquet reads. Each row
           has a path, class, score, the map's extremes and, in 'map', the map
           at the resolution of the layer, as bytes from 0 to 255. The row of a
           photo that could not be explained has class -1, and says why in
           'error'. 'gradcam-fast render' makes pictures of the table.

  NAME is the photo's, with a number if two photos have the same name or if a
  file of that name is in the way. Subfolders are kept. Files of an earlier run
  are replaced where they are of the same photo, other files never. A file
  appears only when it is complete, so an interrupted run can be continued by
  the same command with --resume. One run at a time writes to a folder.

Engines:
  local    The threads of this process.
  ray      The cores and GPUs of the Ray cluster that RAY_ADDRESS names, or of
           this machine. It writes the table of maps only. Photos and output
           folder must be on a disk that all machines share. --resume leaves out
           photos that have a row in the table, also one with an error.

Messages:
  For up to {FEW_PHOTOS} photos, the most probable classes and the files of each are
  printed. For more, a progress bar is shown on a terminal, and one line at the
  end.

{EXIT_CODES}""",
)
def explain(options: SimpleNamespace) -> int:
    """Explain your own photos.

    PATH is a photo, a folder of photos (with its subfolders), or a quoted pattern such as 'photos/**/*.png'.

    In the heatmaps, red is where the network found the most evidence for the class, and dark blue where it found the
    least. Each heatmap is scaled to its own extremes: compare places within one heatmap, not colours of two heatmaps.
    """
    from ..pipeline.photo_files import find_photos
    from .photo_pipeline import explain_photos

    if options.actors and options.engine != "ray":
        raise click.UsageError("--actors is for --engine ray; give --workers for the threads of this process")
    cli_options.check_folder(options.out)
    empty_folders: list[str] = []
    photos = find_photos(options.photos, options.out, empty_folders.append)
    if options.engine == "ray":
        from .ray_run import explain_with_ray

        for message in empty_folders:
            complain(f"{message}; skipped")
        return len(empty_folders) + (explain_with_ray(options, photos) if photos else 0)
    device, dtype = cli_options.placement_of(options)
    formats = options.formats or (["panels"] if len(photos) <= FEW_PHOTOS else ["overlay"])
    settings = cli_options.run_settings_of(options, formats, batch_size=options.batch_size, device=device, dtype=dtype)
    for message in empty_folders:
        complain(f"{message}; skipped")
    if not photos:
        return len(empty_folders)
    network = cli_options.network_of(options)
    question = cli_options.question_of(options, network, 2 if "panels" in formats else 1)
    with cli_options.report_of(options) as report:
        return len(empty_folders) + explain_photos(network, photos, options.out, question, settings, report)


@gradcam_fast.command(
    params=[
        click.Argument(["table"], metavar="TABLE", type=Path, help="The folder maps.parquet, or one file in it."),
        *cli_options.grouped(
            "Input",
            cli_options.Option(
                ["--photos"], metavar="DIR", type=Path, default=".", help="Folder in which relative photo paths start."
            ),
        ),
        *cli_options.out_option("gradcam-fast-pictures"),
        *cli_options.format_option(FORMAT_NAMES, "overlay, panels or npy, or several with commas.  [default: overlay]"),
        *cli_options.PICTURES,
        *cli_options.WORKERS,
        *cli_options.MESSAGES,
        cli_options.DEBUG,
    ],
    epilog=f"""\
Example:
  gradcam-fast render maps/maps.parquet --colormap viridis --out pictures

{EXIT_CODES}""",
)
def render(options: SimpleNamespace) -> int:
    """Make pictures from maps that 'explain --format parquet' saved.

    The photos are needed, the network is not. The pictures are named as 'explain' would have named them.
    """
    from .rendering import render_table

    cli_options.check_folder(options.out)
    settings = cli_options.run_settings_of(options, options.formats or ["overlay"])
    with cli_options.report_of(options) as report:
        return render_table(options.table, options.photos, options.out, settings, report)


@gradcam_fast.command(
    params=[
        click.Argument(["source"], metavar="SOURCE", help="A video file, or the address of a camera or stream."),
        *cli_options.NETWORK,
        *cli_options.EXPLANATION,
        *cli_options.grouped(
            "Output",
            cli_options.Option(
                ["-o", "--out"],
                metavar="FILE",
                type=Path,
                required=True,
                help="Video to write: .mp4, .m4v, .mov, .mkv or .webm.",
            ),
        ),
        *cli_options.OVERLAY,
        *cli_options.DEVICE,
        *cli_options.batch_size_option(8),
        cli_options.PROGRESS,
        cli_options.QUIET,
        cli_options.DEBUG,
    ],
    epilog="""\
Examples:
  gradcam-fast video street.mp4 -o street-gradcam.mp4 --target traffic
  gradcam-fast video /dev/video0 -o me.mp4

Exit codes:
  0    the video was explained
  2    an option is wrong, or the video cannot be read; standard error says why
  130  interrupted with Ctrl-C
""",
)
def video(options: SimpleNamespace) -> int:
    """Explain every frame of a video.

    The written video has the same size and frame rate, and no sound.

    Of a camera or stream, only the newest frame is explained; frames that arrive during an explanation are dropped.
    Ctrl-C stops it and completes the file.
    """
    from .video import explain_video

    cli_options.refuse_package(options, "which explains photos only")
    cli_options.check_colormap(options)
    device, dtype = cli_options.placement_of(options)
    cli_options.check_folder(options.out.parent)
    network = cli_options.network_of(options)
    wants_bar = sys.stderr.isatty() if options.progress is None else options.progress
    with ProgressBar("frames", None) if wants_bar else nullcontext() as bar:
        explain_video(
            network,
            options.source,
            options.out,
            cli_options.question_of(options, network, 1),
            device=device,
            dtype=dtype,
            batch_size=options.batch_size,
            colormap=options.colormap,
            alpha=options.alpha,
            tell=(lambda _: None) if options.quiet else tell,
            progress=bar.update if bar else lambda done, total: None,
        )
    return 0


@gradcam_fast.command(
    params=[*cli_options.NETWORK, cli_options.ALL_LAYERS, cli_options.DEBUG],
    epilog="""\
Example:
  gradcam-fast layers --model resnet18 --weights random
  gradcam-fast layers --model resnet18 --weights random --all

Exit codes:
  0    the layers were listed
  2    an option is wrong, or the network is unknown or incomplete; standard
       error says why
""",
)
def layers(options: SimpleNamespace) -> int:
    """List the layers of a network that can be explained.

    These are the layers whose output is a map of the image, in the order in which they finish: one for each stage, or
    all with --all. The star marks the layer that is explained by default; 'explain --layer NAME' explains another one.
    """
    cli_options.refuse_package(options, "in which the layer is fixed; 'gradcam-fast info' tells which one")
    network = cli_options.network_of(options)
    image = torch.rand(1, 3, *network.input_size, dtype=torch.float32, device="cpu")
    found = Explainer(network.model, size=1)(image).layer
    default = found if isinstance(found, tuple) else (found,)
    shown = set() if options.all else set(list_layers(network.model, image))
    rows = [("", "layer", "output", "map", "kind")]
    for layer in list_layers(network.model, image, every=True):
        if not options.all and layer not in shown and layer.name not in default:
            continue
        star = "*" if layer.name in default else ""
        rows.append((star, layer.name, _by(layer.shape[1:]), _by(layer.grid), layer.kind))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"{network.title}, input {_by(network.input_size)}\n")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


@gradcam_fast.command(
    params=[
        *cli_options.NETWORK,
        *cli_options.grouped("Explanation", cli_options.TOPK),
        *cli_options.EXPLANATION,
        *cli_options.grouped(
            "Package",
            cli_options.Option(
                ["-o", "--out"], metavar="FILE", type=Path, required=True, help="Package to write, .pt2."
            ),
            cli_options.Option(
                ["--batch"],
                metavar="LOW:HIGH",
                type=cli_options.batch_range,
                default="1:64",
                help="Smallest and largest number of images that it takes at once, or the only one.",
            ),
            cli_options.Option(
                ["--self-contained"],
                is_flag=True,
                help="Make heatmaps with PyTorch's own operators, so that no library of gradcam_fast is needed.",
            ),
        ),
        *cli_options.DEVICE,
        cli_options.DEBUG,
    ],
    epilog="""\
Examples:
  gradcam-fast export -o lite0.pt2
  gradcam-fast export --model resnet50 --weights resnet50.pth --topk 3 \\
    --batch 1:64 -o resnet50.pt2
  gradcam-fast explain photos/ --model resnet50.pt2

  A package runs with the release of PyTorch that made it, on processors or
  devices of the same kind. It is native code: use only files that you trust.
  The compiler takes a minute or two for a network such as ResNet-50.

Exit codes:
  0    the package was written
  2    an option is wrong, or the network cannot be exported; standard error
       says why
  130  interrupted with Ctrl-C
""",
)
def export(options: SimpleNamespace) -> int:
    """Write a network and its explanations into one file, which runs without the network's code.

    The package takes photos as 'explain' prepares them, and returns prediction and heatmaps. 'explain --model FILE.pt2'
    uses it, gradcam_fast.load in Python, and PyTorch's AOTIModelPackageLoader in C++ (see examples/cpp).

    With '--target input' the classes come in with every call.
    """
    from ..features import feature_maps
    from ..packages import export as export_package
    from ..packages import package_info
    from ..pipeline.networks.packaged import described, export_options

    cli_options.refuse_package(options, "which is already exported")
    device, dtype = cli_options.placement_of(options)
    cli_options.check_folder(options.out.parent)
    network = cli_options.network_of(options)
    by_input = options.target == "input"
    if by_input:
        options.target = None
    chosen = cli_options.question_of(options, network, 1)
    model = network.model.to(device, dtype)
    image = torch.rand(1, 3, *network.input_size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    layer = feature_maps(model, image, layer=chosen.layer).layer
    export_package(
        Explainer(model, layer=layer, method=chosen.method),
        image,
        options.out,
        target="input" if by_input else chosen.target,
        # One class of each image is without an axis of classes.
        topk=None if by_input or chosen.topk == 1 else chosen.topk,
        batch=options.batch,
        self_contained=options.self_contained,
        **export_options(network),
    )
    written = package_info(options.out)
    print(
        f"{options.out} explains {described(written)} at layer {layer} of {network.title}\n"
        f"try it: gradcam-fast explain PHOTO --model {options.out}"
    )
    return 0


@gradcam_fast.command(
    params=[
        click.Argument(["package"], metavar="FILE", type=Path, help="A package that 'export' wrote, .pt2."),
        *cli_options.grouped("Output", cli_options.Option(["--json"], is_flag=True, help="Print JSON.")),
        cli_options.DEBUG,
    ],
    epilog="""\
Example:
  gradcam-fast info resnet50.pt2

Exit codes:
  0    the facts were printed
  2    the file is missing, damaged, or no package; standard error says which
""",
)
def info(options: SimpleNamespace) -> int:
    """Tell what a package explains, what it takes, and where it runs.

    None of the package's code is run.
    """
    import json

    from ..packages import package_info
    from ..pipeline.networks.packaged import facts

    values = facts(package_info(options.package))
    if options.json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return 0
    low, high = values["batch"]
    values["batch"] = f"{low} to {high} images" if low != high else f"{low} images"
    width = max(map(len, values))
    for name, value in values.items():
        if value is not None:
            print(f"{name.replace('_', ' ').ljust(width)}  {_in_words(value)}")
    return 0


gradcam_fast.add_command(serve)


def _in_words(value: object) -> str:
    """A plain value for people: 224x224 for [224, 224]."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(member)}" for name, member in value.items())
    if isinstance(value, (list, tuple)):
        return ("x" if all(isinstance(member, int) for member in value) else ", ").join(map(str, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
