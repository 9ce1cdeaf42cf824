"""``gradcam-fast explain --engine ray``: a table of maps, made on all machines of a cluster."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..exceptions import PhotoError
from ..pipeline.map_table import owners
from ..pipeline.photo_files import wanted_name
from ..pipeline.question import QuestionError
from . import options as cli_options
from .console import Report, complain
from .output_names import OutputNames
from .photo_pipeline import table_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from ..pipeline.photo_files import PhotoFile

__all__ = ["explain_with_ray"]


def explain_with_ray(options: SimpleNamespace, photos: Sequence[PhotoFile]) -> int:
    """Explain photos with Ray, and write the table of maps.

    Returns:
        How many photos could not be explained; each was reported, and has a row in the table that says why.

    Raises:
        ValueError: another format than Parquet, or as :func:`gradcam_fast.batch.explain_photos`.
    """
    if others := [name for name in options.formats or () if name != "parquet"]:
        raise ValueError(
            f"--format: --engine ray writes a table of maps and no {others[0]}; give --format parquet, and draw "
            "pictures of the table with 'gradcam-fast render'"
        )
    from ..batch import Actors, Explain, explain_photos
    from ..batch.explain import table_of

    explain = Explain(
        cli_options.source_of(options),
        target=options.target,
        topk=options.topk,
        layer=options.layer,
        method=options.method,
        batch_size=options.batch_size,
        max_pixels=options.max_pixels,
    )
    try:
        network, _ = explain.ask()
    except QuestionError as error:
        raise ValueError(f"--{error}") from None
    for note in network.notes:
        complain(f"note: {note}")
    names = OutputNames((photo.path for photo in photos), options.out, (), owners(table_path(options.out)))
    listing = table_of((str(photo.path), names.claim(photo.path, wanted_name(photo))) for photo in photos)
    start = time.monotonic()
    with Report(verbose=False, bar=False, summary=False if options.quiet else None) as report:
        outcome = explain_photos(
            listing,
            options.out,
            explain,
            Actors(options.actors, cpus=options.workers or 1),
            resume=options.resume,
            progress=sys.stderr.isatty() if options.progress is None else options.progress,
        )
        report.begin(len(photos) - outcome.earlier, len(photos))
        for reason in outcome.errors:
            report.photo_skipped(PhotoError(reason))
        report.done = outcome.explained
        report.end(time.monotonic() - start, options.out)
    return report.unreadable
