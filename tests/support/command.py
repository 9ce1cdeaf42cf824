"""Runs the command line in this process, and makes photos for it."""

from gradcam_fast.cli import main
from gradcam_fast.cli.demo import sample_photos
from support import red_or_blue

CHELSEA = sample_photos()[0][0]


def run_command(capsys, *arguments):
    """Run the command; return its exit code, and the lines on standard output and on standard error.

    Warnings are left out, because one is printed wherever a kernel is missing.
    """
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("gradcam-fast: warning:")]
    return status, captured.out.splitlines(), errors


def small_photos(folder, count):
    """The paths of ``count`` photos, each red in one place."""
    folder = folder / f"{count} photos"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        red_or_blue.photo(scale=1).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())
