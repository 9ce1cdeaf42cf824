"""The two exceptions that end a launch."""


class Fault(Exception):
    """The kernel does something that a GPU would refuse, hang in, or silently get wrong."""


class Unsupported(Exception):
    """The kernel uses a feature that this interpreter does not model exactly."""


def require_form(instruction, modifiers, known):
    if tuple(modifiers) not in known:
        raise Unsupported(f"{instruction}: this form is not supported")
