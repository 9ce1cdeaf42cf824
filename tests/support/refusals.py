"""`assert_says`: checks the exception and the message of a refusal."""


def assert_says(refusal, error, parts):
    """Assert that pytest.raises' `refusal` is an `error` with a message of one line that contains all `parts`."""
    message = str(refusal.value)
    assert issubclass(refusal.type, error)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message and len(message) < 500
