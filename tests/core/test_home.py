import stat
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.home import (
    clouds_path,
    home,
    load_clouds,
    local_cloud,
    open_home,
    save_clouds,
    store_options,
    write_private,
)
from cloudshift_lab.core.placement import Cloud, Clouds


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_home_is_where_the_environment_says_and_private(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(tmp_path / "a" / "b"))
    assert home() == tmp_path / "a" / "b"
    assert mode(home()) == 0o700


def test_without_the_variable_the_home_is_in_the_users_home(tmp_path, monkeypatch):
    monkeypatch.delenv("CLOUDSHIFT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cloudshift"


def test_every_spelling_of_a_home_is_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = tmp_path.resolve() / "state"
    assert open_home(place) == place
    (tmp_path / "link").symlink_to(place)
    for spelling in (
        "~/state",
        "state",
        str(tmp_path / "link"),
        str(tmp_path / "x" / ".." / "state"),
    ):
        monkeypatch.setenv("CLOUDSHIFT_HOME", spelling)
        assert home() == place, spelling


def test_a_home_that_others_may_enter_is_closed_to_them(tmp_path):
    place = tmp_path / "wide"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    open_home(place)
    assert mode(place) == 0o700


@pytest.mark.parametrize("spelling", ["file/below", "file", "~nobody-of-that-name/x"])
def test_a_home_that_cannot_be_is_one_clear_message(tmp_path, spelling):
    (tmp_path / "file").write_text("")
    root = Path(spelling) if spelling.startswith("~") else tmp_path / spelling
    with pytest.raises(UsageError, match=r"cannot be the state directory.*point CLOUDSHIFT_HOME"):
        open_home(root)


def test_a_private_file_is_its_owners_alone_and_replaced_whole(tmp_path):
    path = tmp_path / "secret.json"
    write_private(path, b"a much longer first text")
    write_private(path, b"second")
    assert path.read_bytes() == b"second"
    assert mode(path) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret.json"]


def test_replacing_a_file_that_was_open_to_all_closes_it(tmp_path):
    path = tmp_path / "secret.json"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert mode(path) == 0o600


def test_nothing_configured_leaves_this_machine_which_is_free(tmp_path):
    (cloud,) = load_clouds(tmp_path).clouds
    assert cloud == local_cloud(tmp_path)
    assert cloud.store_url == f"file://{tmp_path}/store"
    assert cloud.offers[0].price_micro_usd_per_h == 0


def test_saved_clouds_come_back_after_the_local_one(tmp_path):
    clouds = Clouds(clouds=(Cloud(name="aws", title="A", store_url="s3://a"),))
    save_clouds(tmp_path, clouds)
    assert [cloud.name for cloud in load_clouds(tmp_path).clouds] == ["local", "aws"]
    assert mode(clouds_path(tmp_path)) == 0o600


def test_a_configured_local_cloud_replaces_the_built_in_one(tmp_path):
    mine = Cloud(name="local", title="mine", store_url="file:///big/disk")
    save_clouds(tmp_path, Clouds(clouds=(mine,)))
    assert load_clouds(tmp_path).clouds == (mine,)


def test_a_cloud_list_that_is_not_readable_is_named(tmp_path):
    clouds_path(tmp_path).write_text("{")
    with pytest.raises(Corrupt, match=r"clouds\.json"):
        load_clouds(tmp_path)


def test_store_options_come_back_as_plain_values_also_from_the_file(tmp_path):
    options = {"key": msgspec.Raw(b'"k"'), "client_kwargs": msgspec.Raw(b'{"verify": false}')}
    cloud = Cloud(name="aws", title="A", store_url="s3://a", store_options=options)
    save_clouds(tmp_path, Clouds(clouds=(cloud,)))
    for found in (cloud, load_clouds(tmp_path).find("aws")):
        assert store_options(found) == {"key": "k", "client_kwargs": {"verify": False}}


def test_a_cloud_without_options_has_none():
    assert store_options(Cloud(name="a", title="A", store_url="file:///a")) == {}


def test_a_cloud_is_reached_from_outside_by_its_public_options_where_it_has_any(tmp_path):
    inside, public = ({"endpoint_url": msgspec.Raw(b'"%s"' % at)} for at in (b"in", b"out"))
    cloud = Cloud(
        name="a", title="A", store_url="s3://a", store_options=inside, public_store_options=public
    )
    save_clouds(tmp_path, Clouds(clouds=(cloud,)))
    found = load_clouds(tmp_path).find("a")
    assert store_options(found) == {"endpoint_url": "in"}
    assert store_options(found, inside=False) == {"endpoint_url": "out"}
    plain = msgspec.structs.replace(cloud, public_store_options=None)
    assert store_options(plain, inside=False) == {"endpoint_url": "in"}


def test_an_option_that_is_no_json_is_refused():
    cloud = Cloud(name="a", title="A", store_url="s3://a", store_options={"key": msgspec.Raw(b"k")})
    with pytest.raises(UsageError, match=r"mend clouds\.json"):
        store_options(cloud)
