"""Folders that all workers of a test run share, so that what is compiled, downloaded or packed is made once per run."""

import os
import shutil

from filelock import FileLock


def folder_filled_once(tmp_path_factory, name, fill):
    """The folder ``name`` of this run. The worker that asks first calls ``fill(folder)``; the others wait for it."""
    of_the_run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        of_the_run = of_the_run.parent
    folder, complete = of_the_run / name, of_the_run / f"{name}.complete"
    with FileLock(of_the_run / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            complete.touch()
    return folder
