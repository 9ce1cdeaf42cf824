"""Counts of a launch: instructions per warp, sectors of global memory, bank passes of shared memory. No times."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Profile:
    # Instructions by kind, counted once per warp, whatever the number of its active threads.
    instructions: Counter = field(default_factory=Counter)
    # By kind of access, summed over the warps: bytes requested, and sectors of 32 bytes accessed.
    requested: Counter = field(default_factory=Counter)
    sectors: Counter = field(default_factory=Counter)
    # Passes over the banks of shared memory, and the number without conflicts.
    passes: Counter = field(default_factory=Counter)
    fewest_passes: Counter = field(default_factory=Counter)

    def global_access(self, kind, lanes, addresses, size):
        self.requested[kind] += size * lanes.size
        first = addresses >> np.uint64(5)
        touched = (lanes >> 5).astype(np.uint64) << np.uint64(58) | first
        # An aligned access of at most 16 bytes lies in one sector.
        self.sectors[kind] += np.unique(touched).size

    def shared_access(self, kind, lanes, offsets, size):
        """Accesses wider than a bank's word are made by half or quarter warps."""
        share = lanes // (32 // max(1, size // 4))
        words = (offsets // 4)[:, None] + np.arange(max(1, size // 4))
        keys = np.unique(share[:, None].astype(np.int64) << 40 | words)
        share_of, bank = keys >> 40, keys & 31
        of_banks = np.zeros((int(share.max()) + 1, 32), np.int64)
        np.add.at(of_banks, (share_of, bank), 1)
        self.passes[kind] += int(of_banks.max(1).sum())
        self.fewest_passes[kind] += np.unique(share).size


def kind_of(instruction):
    name, *parts = instruction.parts
    if name in ("ld", "st"):
        space = next((part for part in parts if part in ("param", "global", "local", "shared")), None)
        shared = space == "shared" or "shared::cluster" in parts or "shared::cta" in parts
        return f"{name} {'shared' if shared else space or 'generic'}"
    if name == "cp" and parts[0] == "async":
        return "cp.async" if len(parts) > 2 and parts[1] in ("ca", "cg") else "cp.async wait"
    if name in ("bra", "brx", "ret", "exit"):
        return "branch"
    if name in ("bar", "barrier"):
        return "barrier"
    if name == "shfl":
        return "shuffle"
    return {"f32": "float32", "f64": "float64"}.get(parts[-1] if parts else "", "integer and other")
