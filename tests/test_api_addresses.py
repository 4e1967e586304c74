"""Where the service is reached, and where a request comes from."""

import pytest
from requests_made import asked

from finetune.api import addresses
from finetune.settings import Settings

HOME = {"Host": "localhost:7860"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:7860"},
        {"Origin": "HTTP://LOCALHOST:7860"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://x.org"},  # a proxy that does not pass the host on
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"X-Forwarded-Host": "x.org", "Origin": "https://x.org"},
        {"Origin": "https://told.org"},
    ],
)
def test_request_of_our_own_page_or_of_a_program_is_not_foreign(tmp_path, headers):
    """Programs say nothing of sites; our page’s requests name us; following a link changes nothing."""
    settings = Settings(tmp_path, public_url="https://told.org/lora")

    assert not addresses.is_foreign(settings, asked({**HOME, **headers}))


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {"Origin": "https://evil.org"}),
        ("GET", {"Origin": "https://evil.org"}),
        ("POST", {"Origin": "null"}),
        ("POST", {"Origin": ""}),
        ("POST", {"Origin": "http://["}),
        ("POST", {"Origin": "http://localhost:8888"}),
        ("POST", {"Origin": "http://localhost:7860.evil.org"}),
        ("POST", {"Origin": "http://evil.org/http://localhost:7860"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
    ],
)
def test_request_of_another_site_s_page_is_foreign(tmp_path, method, headers):
    """Whatever page made a browser send it: by script, by form, as a picture or in a frame; another port is another."""
    assert addresses.is_foreign(Settings(tmp_path), asked({**HOME, **headers}, method))


def test_space_is_shown_inside_a_page_of_the_hub(tmp_path):
    """There, and only there, being in a frame is as it should be."""
    headers = {"Host": "a-b.hf.space", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    request = asked({**headers, "Sec-Fetch-Dest": "iframe"})

    assert not addresses.is_foreign(Settings(tmp_path, on_space=True), request)


@pytest.mark.parametrize(
    "host",
    ["localhost:7860", "127.0.0.1:1", "[::1]:7860", "192.168.1.5", "gpu-box:7860", "studio.local", "a.LAN:80", "x.org"],
)
def test_names_that_only_this_network_gives_are_known(tmp_path, host):
    """Addresses, names without a dot, those of a network, and what the owner told of."""
    settings = Settings(tmp_path, public_url="https://x.org/lora")

    assert addresses.is_known_host(settings, asked({"Host": host}))


@pytest.mark.parametrize(
    "host", ["evil.org", "127.0.0.1.evil.org", "localhost.evil.org:7860", "[::1", "a b", "x.org:81"]
)
def test_names_that_anybody_can_point_at_this_machine_are_not(tmp_path, host):
    """A page that lets its own name resolve to this machine is recognised by that name."""
    settings = Settings(tmp_path, public_url="https://x.org/lora")

    assert not addresses.is_known_host(settings, asked({"Host": host}))


@pytest.mark.parametrize(
    ("client", "network"),
    [("10.0.0.7", "10.0.0.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("testclient", "testclient")],
)
def test_household_counts_as_one_address(tmp_path, client, network):
    """Whoever has a network of IPv6 has as many addresses as they like, in one half."""
    assert addresses.network(Settings(tmp_path), asked(client=client)) == network


def test_forwarded_address_is_believed_on_a_space_alone(tmp_path):
    """Elsewhere the server itself decides which proxies it trusts."""
    request = asked({"X-Forwarded-For": "1.2.3.4, 5.6.7.8"})

    assert addresses.network(Settings(tmp_path, on_space=True), request) == "5.6.7.8"
    assert addresses.network(Settings(tmp_path), request) == "10.0.0.7"
