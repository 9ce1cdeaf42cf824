"""The command line run in this process, and photos for it. Knows nothing of what is tested."""

from gradcam_fast.cli import main
from gradcam_fast.cli.demo import sample_photos
from support import red_or_blue

CHELSEA = sample_photos()[0][0]


def run_command(capsys, *arguments):
    """Run the command; give back its exit status, and the lines on standard output and on standard error.

    Without warnings: whether a kernel is missing is none of the tests' business.
    """
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        status = exit.code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("gradcam-fast: warning:")]
    return status, captured.out.splitlines(), errors


def small_photos(folder, count):
    """The paths of so many photos, each red in one place."""
    folder = folder / f"{count} photos"
    folder.mkdir(exist_ok=True)
    for number in range(count):
        red_or_blue.photo(scale=1).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())
