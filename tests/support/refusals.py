"""`assert_says`: what every message of refusal must carry.

Knows nothing of what is refused.
"""


def assert_says(refusal, error, parts):
    message = str(refusal.value)
    assert issubclass(refusal.type, error)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message and len(message) < 500
