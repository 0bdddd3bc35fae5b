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


def test_no_message_is_longer_than_a_paragraph():
    """A name of a hundred thousand characters must not bury what to do about it."""
    message = str(errors.DatasetError(f"unknown dataset {'x' * 100_000!r}; give another name"))
    assert len(message) <= errors.MAX_MESSAGE
    assert message.startswith("unknown dataset 'xxx")
    assert message.endswith("xxx'; give another name")


def test_lists_are_cut_with_a_count():
    assert errors.listed("abc", most=3) == "a, b, c"
    assert errors.listed("abcde", most=3) == "a, b, c and 2 more"
    assert len(errors.listed(["x" * 1000] * 1000)) <= errors.MAX_MESSAGE + 100
