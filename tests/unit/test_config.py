"""A hub's settings: each with its default, and refused by name where it is wrong."""

import dataclasses
import inspect
import ipaddress
import typing

import pytest

from backchannel import contracts, stores
from backchannel.config import Settings, SettingsOptions

NUMBERS = [f.name for f in dataclasses.fields(Settings) if f.type in {"int", "float"}]
WHOLE = [f.name for f in dataclasses.fields(Settings) if f.type == "int"]
LIMITS = [
    f.name
    for f in dataclasses.fields(Settings)
    if f.type in {"int | None", "float | None"} and "_per_" in f.name
]
SWITCHES = [f.name for f in dataclasses.fields(Settings) if f.type == "bool"]


def test_the_defaults_are_the_documented_ones():
    settings = Settings()
    assert settings.max_message == 1024 * 1024
    assert settings.max_outbox == 1024 * 1024
    assert settings.handshake_timeout == 10
    assert settings.ping_interval == 25
    assert settings.ping_timeout == 20
    assert settings.slow_callback == 0.020
    assert settings.cancel_on_close
    assert settings.allowed_origins == ()
    assert settings.trusted_proxies == ()
    assert not settings.debug
    assert not settings.require_user
    assert not settings.casefold_channels


def test_the_keywords_for_editors_are_the_settings_with_the_same_types():
    hints = SettingsOptions.__annotations__
    fields = {field.name: field.type for field in dataclasses.fields(Settings)}
    assert {name: hint.__forward_arg__ for name, hint in hints.items()} == fields


def test_each_setting_is_explained():
    described = inspect.cleandoc(Settings.__doc__)
    for field in dataclasses.fields(Settings):
        assert f"\n    {field.name}: " in described, field.name


def test_the_settings_types_can_be_resolved_by_tools():
    scope = {"Broker": contracts.Broker, "Sessions": stores.Sessions}
    assert typing.get_type_hints(Settings, localns=scope)["max_message"] is int


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().debug = True


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("-inf")])
def test_a_number_that_is_not_more_than_0_is_refused_by_its_settings_name(name, value):
    if name in WHOLE and isinstance(value, float):
        with pytest.raises(TypeError, match=rf"Hub\({name}=…\) must be int, not"):
            Settings(**{name: value})
        return
    with pytest.raises(ValueError, match=rf"Hub\({name}=…\) must be more than 0, not {value}"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["10", None, True, 1j])
def test_what_is_no_number_is_refused_by_its_settings_name(name, value):
    with pytest.raises(TypeError, match=rf"Hub\({name}=…\) must be (int|float), not "):
        Settings(**{name: value})


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_off_unless_it_is_set(name):
    assert getattr(Settings(), name) is None
    assert getattr(Settings(**{name: None}), name) is None
    assert getattr(Settings(**{name: 7}), name) == 7


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_that_would_admit_nothing_is_refused_by_its_settings_name(name, value):
    with pytest.raises(ValueError, match=rf"Hub\({name}=…\) must be more than 0, not {value}"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["10", True, 1j])
def test_a_limit_that_is_no_number_is_refused_by_its_settings_name(name, value):
    with pytest.raises(TypeError, match=rf"Hub\({name}=…\) must be (int|float) \| None, not "):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["max_messages_per_second", "max_handshakes_per_second"])
def test_a_rate_may_be_broken_but_not_endless(name):
    assert getattr(Settings(**{name: 0.5}), name) == 0.5
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"Hub\({name}=…\) must be"):
            Settings(**{name: value})


@pytest.mark.parametrize("value", ["newest", None, True, 1, []])
def test_what_happens_to_a_full_user_is_one_of_two(value):
    expected = r'Hub\(when_user_is_full=…\) must be "replace" or "refuse", not '
    with pytest.raises(ValueError, match=expected):
        Settings(when_user_is_full=value)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_takes_true_and_false_alone(name, value):
    with pytest.raises(TypeError, match=rf"Hub\({name}=…\) must be bool, not {value!r}"):
        Settings(**{name: value})


def test_seconds_may_be_whole_or_broken():
    assert Settings(ping_interval=5, ping_timeout=0.5).ping_timeout == 0.5


@pytest.mark.parametrize("value", ["me", 5, object()])
def test_authenticate_must_be_callable(value):
    with pytest.raises(TypeError, match=r"Hub\(authenticate=…\) must be callable"):
        Settings(authenticate=value)


class Asked:
    def __call__(self, request, more):
        """Take one thing too many."""


@pytest.mark.parametrize("value", [lambda: "ana", lambda request, hub: "ana", Asked()])
def test_authenticate_must_take_a_request(value):
    with pytest.raises(
        TypeError, match=r"authenticate=…\) is called with the request alone, as .*: "
    ):
        Settings(authenticate=value)


@pytest.mark.parametrize(
    "value", [lambda request: 1, lambda *all_: 1, lambda request, more=None: 1, str]
)
def test_authenticate_may_take_more_than_it_is_given(value):
    assert Settings(authenticate=value).authenticate is value


@pytest.mark.parametrize("value", [3, None, b"chat"])
def test_a_name_must_be_text(value):
    with pytest.raises(ValueError, match=r"Hub\(name=…\) is 1 to 64 letters.* not "):
        Settings(name=value)


@pytest.mark.parametrize("value", [5, b"redis://localhost"])
def test_a_broker_must_be_one(value):
    with pytest.raises(TypeError, match=r"Hub\(broker=…\)"):
        Settings(broker=value)


@pytest.mark.parametrize("name", ["allowed_origins", "trusted_proxies"])
@pytest.mark.parametrize("value", [None, 5, True, [5], ["https://a.example", None], b"10.0.0.1"])
def test_a_list_that_is_none_is_refused_by_its_settings_name(name, value):
    with pytest.raises(TypeError, match=rf"Hub\({name}=…\) takes str or a list of str, not"):
        Settings(**{name: value})


def test_one_str_is_one_origin_and_one_proxy():
    settings = Settings(allowed_origins="https://a.example", trusted_proxies="10.0.0.1")
    assert settings.allowed_origins == ("https://a.example",)
    assert settings.networks() == (ipaddress.ip_network("10.0.0.1/32"),)


def test_an_iterator_is_read_once_and_kept():
    settings = Settings(allowed_origins=iter(["https://a.example", "*"]))
    assert settings.allowed_origins == ("https://a.example", "*")


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://app.example.com",
        "HTTPS://App.Example.com",
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "http://[::1]",
        "https://*.example.com",
        "https://*.example.com:8443",
        "https://xn--bcher-kva.example",
        "chrome-extension://abcdefghijklmnop",
    ],
)
def test_an_origin_as_a_browser_sends_it_is_taken(origin):
    assert Settings(allowed_origins=[origin]).allowed_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "app.example.com",
        "localhost:3000",
        "https://",
        "://app.example.com",
        "https://app.example.com/",
        "https://app.example.com/chat",
        "https://app.example.com?x=1",
        "https://app.example.com#x",
        "https://user@app.example.com",
        "https://app.example.com:port",
        "https://app.example.com:99999",
        "https://*example.com",
        "https://app.*.com",
        "https://*.",
        "https://*",
        "https://[::1",
        "https://a b.example",
        " https://a.example",
        "https://a.example\n",
        "**",
    ],
)
def test_what_no_browser_sends_as_origin_is_refused_with_the_right_form(origin):
    with pytest.raises(ValueError, match="is no origin; write it as a browser sends it") as caught:
        Settings(allowed_origins=["https://fine.example", origin])
    assert repr(origin) in str(caught.value)
    assert "allowed_origins" in str(caught.value)


@pytest.mark.parametrize("proxy", ["10.0.0.1", "10.0.0.7/8", "::1", "fd00::/8"])
def test_a_proxy_is_an_address_or_a_network(proxy):
    (network,) = Settings(trusted_proxies=[proxy]).networks()
    assert (
        ipaddress.ip_address(proxy.partition("/")[0] if proxy != "fd00::/8" else "fd00::1")
        in network
    )


@pytest.mark.parametrize("proxy", ["", "proxy.example", "10.0.0", "10.0.0.1/99", "*"])
def test_a_proxy_that_is_no_address_is_refused_by_name(proxy):
    with pytest.raises(ValueError, match=r"Hub\(trusted_proxies=…\): .* is no address or network"):
        Settings(trusted_proxies=proxy)
