"""cp.async: copies to shared memory. Here a copy ends only when the thread that began it waits for it."""

import re

import numpy as np

from .access import Access, addresses_of
from .faults import Unsupported


class AsyncCopies:
    """The pending copies, each with its lane and the number of its group."""

    def __init__(self, lanes):
        self.group = np.zeros(lanes, np.int64)
        self.pending = []

    def reset(self):
        self.group[:] = 0
        self.pending = []

    def begin(self, pieces, lanes):
        self.pending.append((pieces, lanes, self.group[lanes]))

    def end(self, lanes, pending_groups, tracker, clock):
        """End all committed groups of these lanes except the last `pending_groups`."""
        until = np.full(self.group.size, -1)
        until[lanes] = self.group[lanes] - pending_groups
        still_pending = []
        for pieces, piece_lanes, group in self.pending:
            ends = group < until[piece_lanes]
            if ends.any():
                tracker.end_copy(pieces[ends], piece_lanes[ends], clock)
                pieces, piece_lanes, group = pieces[~ends], piece_lanes[~ends], group[~ends]
            if pieces.size:
                still_pending.append((pieces, piece_lanes, group))
        self.pending = still_pending


def compile_copy(instruction, registers, spaces):
    """A function that runs cp.async or its waits, or None for other instructions."""
    name, *modifiers = instruction.parts
    if name != "cp":
        return None
    copies, shared, clock = spaces.copies, spaces.regions["shared"], spaces.clock
    match modifiers:
        case ["async", "commit_group"]:

            def commit(group):
                copies.group[group.lanes] += 1

            return commit
        case ["async", "wait_all"]:

            def wait_all(group):
                copies.group[group.lanes] += 1
                copies.end(group.lanes, 0, shared.tracker, clock)

            return wait_all
        case ["async", "wait_group"]:
            pending_groups = registers.read(instruction.operands[0], "u32").astype(np.int64)
            return lambda group: copies.end(group.lanes, pending_groups, shared.tracker, clock)
        case ["async", "ca" | "cg", "shared" | "shared::cta", "global", *hints] if all(
            re.fullmatch(r"L2::\d+B", hint) for hint in hints
        ):
            return _compile_begin(instruction, registers, spaces)
    raise Unsupported(f"{instruction}: this form is not supported")


def _compile_begin(instruction, registers, spaces):
    target, source, size, *read_size = instruction.operands
    size = int(size, 0)
    if size not in ((16,) if instruction.parts[2] == "cg" else (4, 8, 16)) or len(read_size) > 1:
        raise Unsupported(f"{instruction}: this form is not supported")
    targets, sources = addresses_of(target, registers), addresses_of(source, registers)
    write = Access(instruction, "shared", size, spaces)
    write.kind = "cp.async to shared"
    # If fewer bytes are read than written, the rest are zeros, and the source is checked for the bytes read only.
    read_sizes = registers.read(read_size[0], "u32") if read_size else np.uint32(size)
    reads = [Access(instruction, "global", count, spaces) for count in range(size + 1)]

    def begin(group):
        lanes = group.lanes
        ((region, _, offsets),) = write.places(lanes, targets(lanes))
        spaces.copies.begin(*write.track("begin_copy", region, lanes, offsets))
        bytes_to = offsets[:, None] + np.arange(size)
        region.bytes[bytes_to] = 0
        counts = np.broadcast_to(read_sizes[lanes] if read_sizes.ndim else read_sizes, lanes.shape)
        source_addresses = sources(lanes)
        write.refuse(counts > size, lanes, source_addresses, "more bytes read than written")
        write.refuse(source_addresses & np.uint64(size - 1) != 0, lanes, source_addresses, "the source is misaligned")
        for count in np.unique(counts[counts > 0]):
            with_count = counts == count
            access, byte_numbers = reads[count], np.arange(count)
            for buffer, reading, begins in access.places_in("global", lanes[with_count], source_addresses[with_count]):
                if buffer.tracker is not None:
                    access.track("read", buffer, reading, begins)
                rows = bytes_to[np.searchsorted(lanes, reading), :count]
                region.bytes[rows] = buffer.bytes[begins[:, None] + byte_numbers]

    return begin
