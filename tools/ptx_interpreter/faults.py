"""The two ways in which a kernel does not run to its end."""


class Fault(Exception):
    """What a GPU would refuse, hang in, or silently get wrong."""


class Unsupported(Exception):
    """What this interpreter does not know, and does not guess."""


def must_be(instruction, modifiers, known):
    if tuple(modifiers) not in known:
        raise Unsupported(f"{instruction}: this form is not known")
