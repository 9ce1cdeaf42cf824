"""How much the tests of the soak do: a short form, or what ``make soak`` asks for.

SOAK is the share of the full number of cases, such as 1 or 0.1; without it the short form runs. SOAK_SEED begins other
cases. Each case has a number, which is its own seed, and a failure tells the number.
"""

import os

SHARE = float(os.environ.get("SOAK") or 0)
SEED = int(os.environ.get("SOAK_SEED") or 0)


def numbers(short, full):
    """The numbers of the cases: ``short`` of them, or a share of ``full``."""
    return range(SEED, SEED + (max(1, round(full * SHARE)) if SHARE else short))
