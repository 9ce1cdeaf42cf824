"""The two errors that end a launch."""


class Fault(Exception):
    """The kernel does what a GPU would refuse, hang in, or silently get wrong."""


class Unsupported(Exception):
    """The kernel uses what this interpreter does not model exactly."""


def require_form(instruction, modifiers, known):
    if tuple(modifiers) not in known:
        raise Unsupported(f"{instruction}: this form is not supported")
