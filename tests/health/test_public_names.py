import cloudshift_lab.health as health


def test_every_public_name_is_there_and_they_are_sorted() -> None:
    assert all(hasattr(health, name) for name in health.__all__)
    assert health.__all__ == sorted(health.__all__)
