"""The Python API as a package: every name is there, and none is hidden by a room's."""

import pkgutil

import cloudshift_lab
from cloudshift_lab.lab import api


def test_the_package_offers_exactly_what_the_api_names() -> None:
    assert set(api.__all__) == cloudshift_lab._API
    for name in api.__all__:
        assert getattr(cloudshift_lab, name) is getattr(api, name)


def test_no_name_of_the_api_is_that_of_a_room() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(cloudshift_lab.__path__)}
    assert rooms & cloudshift_lab._API == set()
