import inspect

from probe import errors


def test_every_error_is_a_probe_error_and_is_drawn():
    """One `except ProbeError` catches all, and the tree in the docstring is complete."""
    for name, value in vars(errors).items():
        if inspect.isclass(value):
            assert issubclass(value, errors.ProbeError)
            assert name in errors.__doc__


def test_messages_are_not_quoted():
    """`KeyError` shows the repr of its message; a user must not see that."""
    assert str(errors.UnknownNameError("unknown dataset")) == "unknown dataset"
