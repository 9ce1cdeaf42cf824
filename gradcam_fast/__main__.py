"""``python -m gradcam_fast``, the same as the command ``gradcam-fast``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
