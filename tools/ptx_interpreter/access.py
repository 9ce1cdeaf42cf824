"""Loads and stores: from the addresses of a group of threads to bytes, which must be there, aligned, and theirs."""

import re

import numpy as np

from .arithmetic import WINDOWS
from .faults import Fault, Unsupported
from .memory import RANK_BITS
from .parse import Address
from .profile import kind_of
from .registers import dtype_of

# How a cache treats the bytes is no concern of who reads them; what orders other accesses would be.
HINTS = re.compile(r"nc|ca|cg|cs|lu|cv|wb|wt|weak|v2|v4|L1::\w+|L2::(?!cache_hint)\w+")
SPACES = {"global", "shared", "shared::cta", "shared::cluster", "local", "param"}
OFFSET = np.uint64((1 << RANK_BITS) - 1)


def stored_size(instruction):
    """The bytes of each number that an instruction writes to memory, as far as one can tell: 16 if it writes none."""
    if instruction.parts[0] == "st":
        return dtype_of(instruction.parts[-1]).itemsize
    return 4 if instruction.opcode.startswith("cp.async.ca") else 16


class Access:
    """What one instruction does to `size` bytes in one space of memory."""

    def __init__(self, instruction, space, size, spaces):
        self.instruction, self.space, self.size, self.spaces = instruction, space, size, spaces
        self.guess = None
        self.kind = kind_of(instruction)

    def fault(self, lane, address, why):
        name = self.spaces.clock.name(lane)
        raise Fault(f"{self.instruction}: {name}: {self.size} bytes at {int(address):#x}: {why}")

    def refuse(self, wrong, lanes, addresses, why):
        if wrong.any():
            which = np.argmax(wrong)
            self.fault(lanes[which], addresses[which], why)

    def places(self, lanes, addresses):
        """(region, lanes, offsets) for each region that some of the lanes touch."""
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
            of_it = spaces == number
            yield from self.places_in(names[number], lanes[of_it], addresses[of_it])

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
        """The rank of the block whose shared memory it is."""
        own = lanes // self.spaces.clock.threads
        area = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64) >> RANK_BITS
        if not area.any():
            return own
        if space != "shared::cluster":
            self.refuse((area != 0) & (area != own + 1), lanes, addresses, "another block's, and not said so")
        owner = np.where(area == 0, own, area - 1)
        self.refuse(owner >= self.spaces.clock.block.size, lanes, addresses, "of a block that is not there")
        if (owner != own).any():
            self.spaces.waiting.reach(self, lanes[owner != own], owner[owner != own], addresses[owner != own])
        return owner

    def track(self, method, region, lanes, offsets):
        """What the tracker says of an access to all `size` bytes."""
        at = region.tracker.pieces(offsets, self.size)
        each = lanes
        if at.ndim == 2:
            each = np.repeat(lanes, at.shape[1])
            at = at.ravel()
        wrong = getattr(region.tracker, method)(at, each, self.spaces.clock)
        if wrong is not None:
            which, why = wrong
            address = region.address(offsets[which // (at.size // offsets.size)])
            self.fault(each[which], address, f"in {region}: {why}")
        return at, each


def addresses_of(operand, registers):
    """A function from lanes to the addresses that an operand stands for."""
    if not isinstance(operand, Address):
        raise Unsupported(f"{operand} is no address")
    if operand.base in registers.kinds:
        kind = "u" + registers.kinds[operand.base][1:]
        base = registers.read(operand.base, kind)
        offset = np.array(operand.offset & (1 << 8 * base.itemsize) - 1, base.dtype)
        return lambda lanes: (base[lanes] + offset).astype(np.uint64, copy=False)
    base = registers.read(operand.base, "u64") if operand.base else np.uint64(0)
    return lambda lanes: np.full(lanes.size, base + np.uint64(operand.offset))


def compile_access(instruction, registers, spaces):
    """A function for a load or a store, or None for an instruction of another sort."""
    name, *modifiers = instruction.parts
    if name == "prefetch":
        return lambda group: None
    if instruction.opcode == "mapa.shared::cluster.u32":
        return _compile_mapa(instruction, registers, spaces)
    if name not in ("ld", "st"):
        return None
    *how, kind = modifiers
    space = next((each for each in how if each in SPACES), "generic")
    if unknown := [each for each in how if each != space and not HINTS.fullmatch(each)]:
        raise Unsupported(f"{instruction}: .{unknown[0]} is not known")
    at, values = instruction.operands if name == "st" else instruction.operands[::-1]
    values = values if isinstance(values, tuple) else (values,)
    if len(values) != (4 if "v4" in how else 2 if "v2" in how else 1):
        raise Unsupported(f"{instruction}: the vector is of another length")
    number = dtype_of(kind)
    size = number.itemsize
    addresses = addresses_of(at, registers)
    access = Access(instruction, space, size * len(values), spaces)

    def load(group):
        lanes = group.lanes
        for region, those, offsets in access.places(lanes, addresses(lanes)):
            if region.tracker is not None:
                if "nc" in how:
                    access.fault(
                        those[0], region.address(offsets[0]), "not coherent with writes, and the buffer is written"
                    )
                access.track("read", region, those, offsets)
            view, first = region.view(size), offsets // size
            for i, target in enumerate(targets):
                target[those] = view[first + i].view(number)

    def store(group):
        lanes = group.lanes
        for region, those, offsets in access.places(lanes, addresses(lanes)):
            if not region.writable:
                access.fault(those[0], addresses(those)[0], f"{region} is only to be read")
            access.track("write", region, those, offsets)
            view, first = region.view(size), offsets // size
            for i, source in enumerate(sources):
                view[first + i] = source[those] if source.ndim else source

    if name == "ld":
        targets = [registers.write(each, kind, wider=True) for each in values]
        return load
    sources = [registers.read(each, f"b{8 * size}", wider=True) for each in values]
    return store


def _compile_mapa(instruction, registers, spaces):
    """The address of what another block has at the same place of its shared memory."""
    result, own, rank = instruction.operands
    target, own, rank = registers.write(result, "u32"), registers.read(own, "u32"), registers.read(rank, "u32")
    area = np.uint32(OFFSET)

    def run(group):
        np.copyto(target, (rank + np.uint32(1)) << np.uint32(RANK_BITS) | own & area, where=group.mask)

    return run
