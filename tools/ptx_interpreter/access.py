"""Loads and stores: checks that the bytes exist, are aligned and may be accessed now, then moves them."""

import re

import numpy as np

from .arithmetic import WINDOWS
from .faults import Fault, Unsupported
from .memory import RANK_BITS
from .parser import Address
from .profile import kind_of
from .registers import dtype_of

# Cache hints change no value. Qualifiers that order other accesses may change values, and are not supported.
HINTS = re.compile(r"nc|ca|cg|cs|lu|cv|wb|wt|weak|v2|v4|L1::\w+|L2::(?!cache_hint)\w+")
SPACES = {"global", "shared", "shared::cta", "shared::cluster", "local", "param"}
OFFSET = np.uint64((1 << RANK_BITS) - 1)


def store_size(instruction):
    """The size of the numbers that an instruction writes to memory; 16, the largest, if it writes none."""
    if instruction.parts[0] == "st":
        return dtype_of(instruction.parts[-1]).itemsize
    return 4 if instruction.opcode.startswith("cp.async.ca") else 16


class Access:
    """The accesses of one instruction: `size` bytes in one memory space."""

    def __init__(self, instruction, space, size, spaces):
        self.instruction, self.space, self.size, self.spaces = instruction, space, size, spaces
        self.guess = None
        self.kind = kind_of(instruction)

    def fault(self, lane, address, why):
        name = self.spaces.clock.name(lane)
        raise Fault(f"{self.instruction}: {name}: {self.size} bytes at {int(address):#x}: {why}")

    def refuse(self, wrong, lanes, addresses, why):
        """Raise a Fault for the first lane whose access is wrong."""
        if wrong.any():
            first = np.argmax(wrong)
            self.fault(lanes[first], addresses[first], why)

    def places(self, lanes, addresses):
        """Yield (region, lanes, offsets) for each region that some of the lanes access."""
        self.refuse(addresses & np.uint64(self.size - 1) != 0, lanes, addresses, "misaligned")
        if self.space != "generic":
            yield from self.places_in(self.space, lanes, addresses)
            return
        window = addresses >> np.uint64(32)
        spaces = np.zeros(lanes.size, np.int8)
        names = ["global", "shared::cluster", "local", "param"]
        for number, name in enumerate(("shared", "local", "param"), 1):
            spaces[window == WINDOWS[name] >> 32] = number
        for number in np.unique(spaces):
            in_space = spaces == number
            yield from self.places_in(names[number], lanes[in_space], addresses[in_space])

    def places_in(self, space, lanes, addresses):
        if space == "global":
            if self.spaces.profile is not None:
                self.spaces.profile.global_access(self.kind, lanes, addresses, self.size)
            yield from self.buffers(lanes, addresses)
            return
        region = self.spaces.regions[space.partition("::")[0]]
        offsets = (addresses & (OFFSET if region.stride else np.uint64(0xFFFFFFFF))).astype(np.int64)
        self.refuse((offsets < region.low) | (offsets + self.size > region.high), lanes, addresses, f"not in {region}")
        if space == "local":
            offsets += lanes * region.stride
        elif space != "param":
            offsets += self.owner(space, lanes, addresses) * region.stride
            if self.spaces.profile is not None:
                self.spaces.profile.shared_access(self.kind, lanes, offsets, self.size)
        yield region, lanes, offsets

    def buffers(self, lanes, addresses):
        buffers = self.spaces.memory.buffers
        for region in buffers if self.guess is None else (self.guess, *buffers):
            offsets = (addresses - np.uint64(region.origin)).view(np.int64)
            inside = (offsets >= region.low) & (offsets + self.size <= region.high)
            if inside.all():
                self.guess = region
                yield region, lanes, offsets
                return
            if inside.any():
                yield region, lanes[inside], offsets[inside]
                lanes, addresses = lanes[~inside], addresses[~inside]
        self.refuse(np.full(lanes.size, True), lanes, addresses, "not in any buffer")

    def owner(self, space, lanes, addresses):
        """The ranks of the blocks whose shared memory is accessed."""
        own = lanes // self.spaces.clock.threads
        area = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64) >> RANK_BITS
        if not area.any():
            return own
        if space != "shared::cluster":
            self.refuse(
                (area != 0) & (area != own + 1),
                lanes,
                addresses,
                "in another block's shared memory, but not addressed as shared::cluster",
            )
        owner = np.where(area == 0, own, area - 1)
        self.refuse(owner >= self.spaces.clock.block.size, lanes, addresses, "of a block that does not exist")
        if (owner != own).any():
            self.spaces.sync.access_other_block(self, lanes[owner != own], owner[owner != own], addresses[owner != own])
        return owner

    def track(self, method, region, lanes, offsets):
        """Report an access to all `size` bytes to the region's tracker; returns the pieces and the lane of each."""
        pieces = region.tracker.pieces(offsets, self.size)
        piece_lanes = lanes
        if pieces.ndim == 2:
            piece_lanes = np.repeat(lanes, pieces.shape[1])
            pieces = pieces.ravel()
        wrong = getattr(region.tracker, method)(pieces, piece_lanes, self.spaces.clock)
        if wrong is not None:
            index, why = wrong
            address = region.address(offsets[index // (pieces.size // offsets.size)])
            self.fault(piece_lanes[index], address, f"in {region}: {why}")
        return pieces, piece_lanes


def addresses_of(operand, registers):
    """A function from lanes to the addresses of an operand."""
    if not isinstance(operand, Address):
        raise Unsupported(f"{operand} is not an address")
    if operand.base in registers.kinds:
        kind = "u" + registers.kinds[operand.base][1:]
        base = registers.read(operand.base, kind)
        offset = np.array(operand.offset & (1 << 8 * base.itemsize) - 1, base.dtype)
        return lambda lanes: (base[lanes] + offset).astype(np.uint64, copy=False)
    base = registers.read(operand.base, "u64") if operand.base else np.uint64(0)
    return lambda lanes: np.full(lanes.size, base + np.uint64(operand.offset))


def compile_access(instruction, registers, spaces):
    """A function that runs a load or a store, or None for other instructions."""
    name, *modifiers = instruction.parts
    if name == "prefetch":
        return lambda group: None
    if instruction.opcode == "mapa.shared::cluster.u32":
        return _compile_mapa(instruction, registers, spaces)
    if name not in ("ld", "st"):
        return None
    *qualifiers, kind = modifiers
    space = next((qualifier for qualifier in qualifiers if qualifier in SPACES), "generic")
    if unknown := [qualifier for qualifier in qualifiers if qualifier != space and not HINTS.fullmatch(qualifier)]:
        raise Unsupported(f"{instruction}: .{unknown[0]} is not supported")
    address, values = instruction.operands if name == "st" else instruction.operands[::-1]
    values = values if isinstance(values, tuple) else (values,)
    if len(values) != (4 if "v4" in qualifiers else 2 if "v2" in qualifiers else 1):
        raise Unsupported(f"{instruction}: the length of the vector does not match the instruction")
    number = dtype_of(kind)
    size = number.itemsize
    addresses = addresses_of(address, registers)
    access = Access(instruction, space, size * len(values), spaces)

    def load(group):
        lanes = group.lanes
        for region, region_lanes, offsets in access.places(lanes, addresses(lanes)):
            if region.tracker is not None:
                if "nc" in qualifiers:
                    access.fault(
                        region_lanes[0],
                        region.address(offsets[0]),
                        "ld.global.nc is not coherent with writes, and the buffer is written to",
                    )
                access.track("read", region, region_lanes, offsets)
            view, first = region.view(size), offsets // size
            for i, target in enumerate(targets):
                target[region_lanes] = view[first + i].view(number)

    def store(group):
        lanes = group.lanes
        for region, region_lanes, offsets in access.places(lanes, addresses(lanes)):
            if not region.writable:
                access.fault(region_lanes[0], addresses(region_lanes)[0], f"{region} is read-only")
            access.track("write", region, region_lanes, offsets)
            view, first = region.view(size), offsets // size
            for i, source in enumerate(sources):
                view[first + i] = source[region_lanes] if source.ndim else source

    if name == "ld":
        targets = [registers.write(value, kind, wider=True) for value in values]
        return load
    sources = [registers.read(value, f"b{8 * size}", wider=True) for value in values]
    return store


def _compile_mapa(instruction, registers, spaces):
    """mapa: the address of the same place in another block's shared memory."""
    result, own, rank = instruction.operands
    target, own, rank = registers.write(result, "u32"), registers.read(own, "u32"), registers.read(rank, "u32")
    area = np.uint32(OFFSET)

    def run(group):
        np.copyto(target, (rank + np.uint32(1)) << np.uint32(RANK_BITS) | own & area, where=group.mask)

    return run
