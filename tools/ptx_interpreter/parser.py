"""Parses PTX text, in the grammar that nvcc writes, into kernels of instructions."""

import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

from .faults import Unsupported


class Address(NamedTuple):
    """[base+offset]; the base is a register, a name or empty."""

    base: str
    offset: int


class Pair(NamedTuple):
    """first|second, two results of one instruction."""

    first: str
    second: str


@dataclass(frozen=True)
class Instruction:
    line: int
    text: str
    guard: str | None
    opcode: str
    # Registers, names and numbers as written; vectors as tuples of these.
    operands: tuple

    @cached_property
    def parts(self):
        return self.opcode.split(".")

    def __str__(self):
        return f"line {self.line}: {self.text}"


class Array(NamedTuple):
    """An array that a kernel declares; size 0 if it is given at the launch."""

    align: int
    size: int


@dataclass
class PtxKernel:
    """A kernel of a PTX text: its parameters, registers, instructions, labels and arrays."""

    name: str
    params: dict[str, Array]
    registers: dict[str, str] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)
    local: dict[str, Array] = field(default_factory=dict)


ARRAY = re.compile(r"(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+([$%\w]+)(?:\[(\d*)\])?$")
PARAM = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.[bsuf](\d+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?")
STATEMENT = re.compile(r"\s*(?:([{}])|([$\w]+)\s*:(?!:)|([^;]*;))")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s][^,]*")


class Module:
    """The kernels of a PTX text; each is parsed when it is first asked for."""

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
        text = re.sub(r"//[^\n]*|^\s*\.(?:loc|file)\b[^\n]*", "", text, flags=re.MULTILINE)
        self.text = text
        self._entries = {match[1]: match.end() for match in re.finditer(r"\.entry\s+([$\w]+)\s*", text)}
        shared = re.findall(r"^\s*(?:\.(?:extern|visible|weak)\s+)?\.shared\s+([^;={]*);", text, re.MULTILINE)
        self._shared = dict(_array(declaration) for declaration in shared if declaration.startswith("."))
        self.kernel = cache(self._kernel)

    @property
    def names(self):
        return list(self._entries)

    def _kernel(self, name):
        start = self._entries[name]
        body = self.text.index("{", start)
        params = {}
        for parameter in self.text[start:body].partition(")")[0].lstrip("(\n ").split(","):
            if match := PARAM.match(parameter.strip()):
                symbol, _, count = parameter.strip()[match.end() :].strip().rstrip("]").partition("[")
                size = int(match[2]) // 8
                params[symbol] = Array(int(match[1] or size), size * int(count or 1))
        kernel = PtxKernel(name, params, shared=dict(self._shared))
        _Body(kernel).read(self.text, body)
        return kernel


class _Body:
    """The body of a kernel. Inner braces open a scope of registers."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.scopes = [{}]
        self.opened = 0

    def read(self, text, position):
        line = text.count("\n", 0, position) + 1
        depth = 0
        label = None
        while True:
            match = STATEMENT.match(text, position)
            first = match.start(match.lastindex)
            line += text.count("\n", position, first)
            brace, name, statement = match.groups()
            if brace == "{":
                depth += 1
                self.opened += 1
                self.scopes.append({})
            elif brace == "}":
                depth -= 1
                self.scopes.pop()
                if depth == 0:
                    return
            elif name:
                label = name
                self.kernel.labels[name] = len(self.kernel.code)
            else:
                self.statement(line, " ".join(statement[:-1].split()), label)
            line += text.count("\n", first, match.end())
            position = match.end()

    def statement(self, line, text, label):
        word, _, rest = text.partition(" ")
        if word == ".reg":
            self.declare(rest)
        elif word == ".branchtargets":
            self.kernel.targets[label] = [label.strip() for label in rest.split(",")]
        elif word in (".shared", ".local"):
            name, array = _array(rest)
            (self.kernel.shared if word == ".shared" else self.kernel.local)[name] = array
        elif text and word != ".pragma":
            if word.startswith("."):
                raise Unsupported(f"line {line}: {text}: this directive is not supported")
            self.kernel.code.append(self.instruction(line, text))

    def declare(self, text):
        kind, _, names = text.partition(" ")
        for name in names.split(","):
            stem, several, count = name.strip().partition("<")
            for register in [f"{stem}{i}" for i in range(int(count[:-1]))] if several else [stem]:
                # A name of an inner scope may also be declared outside; the scope's number tells them apart.
                unique = register if len(self.scopes) == 2 else f"{register}@{self.opened}"
                self.scopes[-1][register] = unique
                self.kernel.registers[unique] = kind[1:]

    def instruction(self, line, text):
        guard, rest = None, text
        if text.startswith("@"):
            guard, _, rest = text[1:].partition(" ")
            guard = self.register(guard)
        opcode, _, operands = rest.strip().partition(" ")
        return Instruction(line, text, guard, opcode, tuple(map(self.operand, OPERAND.findall(operands))))

    def operand(self, text):
        text = text.strip()
        if text.startswith("{"):
            return tuple(self.register(name.strip()) for name in text[1:-1].split(","))
        if text.startswith("["):
            base, sign, offset = re.match(r"\[\s*([$%\w.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", text).groups()
            if base[0].isdigit():
                return Address("", int(base, 0))
            return Address(self.register(base), int((sign == "-") * "-" + (offset or "0"), 0))
        if "|" in text:
            return Pair(*(self.register(name.strip()) for name in text.split("|")))
        return self.register(text)

    def register(self, text):
        negated, name = text[:1] == "!", text.removeprefix("!")
        for scope in reversed(self.scopes):
            if name in scope:
                return "!" * negated + scope[name]
        return text


def _array(text):
    align, bits, name, count = ARRAY.match(" ".join(text.split())).groups()
    return name, Array(int(align or int(bits) // 8), int(bits) // 8 * int(count or 0))
