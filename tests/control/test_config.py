"""flannel's network configuration: every rule, every default, and the words of every refusal."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.config import NetworkConfig, UdpConfig, parse_network_config, parse_udp_config
from flannel_udp.errors import ConfigError

V6 = '"EnableIPv4":false,"EnableIPv6":true,"Backend":{"Type":"vxlan"}'


def with_network(more: str, network: str = "10.5.0.0/16") -> str:
    return f'{{"Network":"{network}"{"," + more if more else ""}}}'


def with_v6(more: str, network: str = "fd00:5::/48") -> str:
    return f'{{{V6},"IPv6Network":"{network}"{"," + more if more else ""}}}'


def test_the_least_configuration_gets_flannels_defaults() -> None:
    text = '{"Network":"10.5.0.0/16"}'
    assert parse_network_config(text) == NetworkConfig(
        enable_ipv4=True,
        enable_ipv6=False,
        enable_nftables=False,
        network=IPv4Network("10.5.0.0/16"),
        subnet_len=24,
        subnet_min=IPv4Address("10.5.1.0"),
        subnet_max=IPv4Address("10.5.255.0"),
        ipv6_network=None,
        ipv6_subnet_len=0,
        ipv6_subnet_min=None,
        ipv6_subnet_max=None,
        backend_type="udp",
        backend={},
        text=text,
    )


def test_a_full_configuration_is_read_as_written() -> None:
    config = parse_network_config(
        b'{"EnableIPv4":true,"EnableIPv6":true,"EnableNFTables":true,"Network":"10.5.3.4/16","SubnetLen":20,'
        b'"SubnetMin":"10.5.16.0","SubnetMax":"10.5.64.0","IPv6Network":"fd00::1/32","IPv6SubnetLen":56,'
        b'"IPv6SubnetMin":"fd00:0:0:100::","IPv6SubnetMax":"fd00:0:1::","Backend":{"Type":"VXLAN","VNI":7}}'
    )
    assert (config.network, config.subnet_len) == (IPv4Network("10.5.0.0/16"), 20)  # host bits masked off
    assert (config.subnet_min, config.subnet_max) == (IPv4Address("10.5.16.0"), IPv4Address("10.5.64.0"))
    assert (config.ipv6_network, config.ipv6_subnet_len) == (IPv6Network("fd00::/32"), 56)
    assert config.ipv6_subnet_min == IPv6Address("fd00:0:0:100::")
    assert config.ipv6_subnet_max == IPv6Address("fd00:0:1::")
    assert config.enable_nftables
    assert (config.backend_type, config.backend) == ("vxlan", {"Type": "VXLAN", "VNI": 7})


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
        ("128.0.0.0/1", 24, "128.0.1.0", "255.255.255.0"),
    ],
)
def test_ipv4_defaults_follow_the_network(network: str, length: int, low: str, high: str) -> None:
    config = parse_network_config(with_network("", network))
    assert (config.subnet_len, str(config.subnet_min), str(config.subnet_max)) == (length, low, high)


@pytest.mark.parametrize(
    ("network", "length", "low", "high"),
    [
        ("fd00:5::/48", 64, "fd00:5:0:1::", "fd00:5:0:ffff::"),
        ("fd00:5::/62", 64, "fd00:5:0:1::", "fd00:5:0:3::"),
        ("fd00:5::/63", 65, "fd00:5:0:0:8000::", "fd00:5:0:1:8000::"),
        ("fd00:5::/124", 126, "fd00:5::4", "fd00:5::c"),
        ("8000::/1", 64, "8000:0:0:1::", "ffff:ffff:ffff:ffff::"),
    ],
)
def test_ipv6_defaults_follow_the_network(network: str, length: int, low: str, high: str) -> None:
    config = parse_network_config(with_v6("", network))
    assert (config.ipv6_subnet_len, str(config.ipv6_subnet_min), str(config.ipv6_subnet_max)) == (length, low, high)
    assert config.network is None
    assert config.subnet_len == 0


@pytest.mark.parametrize(
    "more",
    [
        '"SubnetLen":0',
        '"SubnetLen":null',
        '"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"',
        '"EnableIPv4":null,"EnableIPv6":null',
        '"IPv6SubnetMin":null,"IPv6SubnetMax":"::"',
        '"Unknown":[1,{"x":null}],"Backends":7',
        '"subnetlen":24,"SUBNETMIN":"10.5.1.0"',
        '"Backend":{"Type":"udp"}',
        '"backend":{"tYPE":"UDP","Port":8285}',
    ],
)
def test_what_changes_nothing(more: str) -> None:
    config, least = parse_network_config(with_network(more)), parse_network_config(with_network(""))
    for field in ("network", "subnet_len", "subnet_min", "subnet_max", "enable_ipv4", "enable_ipv6", "backend_type"):
        assert getattr(config, field) == getattr(least, field)


def test_the_same_in_other_words_is_the_same() -> None:
    texts = '{"Network":"10.5.0.0/16"}', '{ "network": "10.5.0.0/16" }\n'
    one, other = map(parse_network_config, texts)
    assert one == other
    assert one.text != other.text
    assert one != parse_network_config('{"Network":"10.6.0.0/16"}')


def test_zeros_before_a_length_are_read_as_go_reads_them() -> None:
    config = parse_network_config('{"Network":"10.5.0.0/' + "0" * 5000 + '16"}')
    assert config.network == IPv4Network("10.5.0.0/16")


def test_the_last_of_equal_keys_counts_whatever_its_case() -> None:
    text = '{"Network":"10.1.0.0/16","network":"10.2.0.0/16","Network":"10.3.0.0/16"}'
    assert parse_network_config(text).network == IPv4Network("10.3.0.0/16")
    text = '{"Network":"10.1.0.0/16","SubnetLen":25,"subnetlen":null}'
    assert parse_network_config(text).subnet_len == 25  # null leaves a number as it is


REFUSED = [
    # text, what the message names, and what it says would be right
    ("", "not JSON", ""),
    ("{", "not JSON", ""),
    ("[" * 100_000, "not JSON", "deep"),
    ('{"Network":"10.5.0.0/16"} x', "not JSON", ""),
    ('{"Network":"10.5.0.0/16","X":NaN}', "not JSON", "NaN"),
    ("[]", "[]", "a JSON object"),
    ("null", "null", "a JSON object"),
    ("{}", "Network is missing", "10.5.0.0/16"),
    ('{"Network":null}', "Network null", "10.5.0.0/16"),
    ('{"Network":10}', "Network 10", "in quotes"),
    ('{"Network":"10.5.0.0"}', 'Network "10.5.0.0"', "a slash and a length"),
    ('{"Network":"10.5.0.0/255.255.0.0"}', "Network", "a slash and a length"),
    ('{"Network":"10.5.0.0/' + "1" * 5000 + '"}', "Network", "a slash and a length"),
    ('{"Network":"10.5.0.0/16","X":' + "1" * 5000 + "}", "not JSON", "digits"),
    ('{"Network":' + "[" * 992 + "]" * 992 + "}", "not JSON", "deep"),
    ('{"Network":"10.5.0.0/33"}', 'Network "10.5.0.0/33"', "a prefix length of at most 32"),
    ('{"Netwrk":"10.5.0.0/16"}', "Network is missing", 'not known, and ignored: "Netwrk"'),
    ('{"' + "Y" * 5000 + '":1}', "Network is missing", "YYY..."),
    ('{"Network":"10.5.0.00/16"}', 'Network "10.5.0.00/16"', ""),
    ('{"Network":"fd00::/48"}', 'Network "fd00::/48"', "10.5.0.0/16"),
    ('{"Network":"0.0.0.0/0"}', 'Network "0.0.0.0/0"', "10.5.0.0/16"),
    ('{"Network":"10.5.0.0/29"}', 'Network "10.5.0.0/29"', "/28"),
    ('{"Network":"10.5.0.0/29","SubnetLen":30}', 'Network "10.5.0.0/29"', "four subnets"),
    ('{"EnableIPv4":false}', "EnableIPv4 false, EnableIPv6 false", "at least one"),
    (with_network('"EnableIPv4":"true"'), 'EnableIPv4 "true"', "true or false"),
    (with_network('"EnableIPv6":1'), "EnableIPv6 1", "true or false"),
    (with_network('"EnableNFTables":{}'), "EnableNFTables {}", "true or false"),
    (with_network('"SubnetLen":"24"'), 'SubnetLen "24"', "without quotes"),
    (with_network('"SubnetLen":24.0'), "SubnetLen 24.0", "a whole number"),
    (with_network('"SubnetLen":true'), "SubnetLen true", "a whole number"),
    (with_network('"SubnetLen":-1'), "SubnetLen -1", "sign"),
    (with_network('"SubnetLen":31'), "SubnetLen 31", "from 18 to 30"),
    (with_network('"SubnetLen":17'), "SubnetLen 17", "from 18 to 30"),
    (with_network('"SubnetMin":"10.6.0.0"'), 'SubnetMin "10.6.0.0"', "10.5.0.0/16"),
    (with_network('"SubnetMax":"10.4.255.0"'), 'SubnetMax "10.4.255.0"', "10.5.0.0/16"),
    (with_network('"SubnetMin":"10.5.7.1"'), 'SubnetMin "10.5.7.1"', "10.5.7.0"),
    (with_network('"SubnetMax":"10.5.7.128"'), 'SubnetMax "10.5.7.128"', "10.5.7.0"),
    (with_network('"SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"'), 'SubnetMin "10.5.9.0"', "10.5.8.0"),
    (with_network('"SubnetMin":null'), "SubnetMin null", "an address in quotes"),
    (with_network('"SubnetMin":"::"'), 'SubnetMin "::"', "an address in quotes"),
    (with_network('"SubnetMin":167772160'), "SubnetMin 167772160", "an address in quotes"),
    (with_network('"IPv6Network":"10.5.0.0/16"'), 'IPv6Network "10.5.0.0/16"', "fd00:5::/48"),
    (with_network('"EnableIPv6":true'), "IPv6Network is missing", "fd00:5::/48"),
    ("{" + V6 + "}", "IPv6Network is missing", "fd00:5::/48"),
    (with_v6("", "fd00::/129"), 'IPv6Network "fd00::/129"', "at most 128"),
    (with_v6("", "fd00::%1/48"), 'IPv6Network "fd00::%1/48"', ""),
    (with_v6("", "::/0"), 'IPv6Network "::/0"', "fd00:5::/48"),
    (with_v6("", "fd00:5::/125"), 'IPv6Network "fd00:5::/125"', "/124"),
    (with_v6('"IPv6SubnetLen":127'), "IPv6SubnetLen 127", "from 50 to 126"),
    (with_v6('"IPv6SubnetLen":49'), "IPv6SubnetLen 49", "from 50 to 126"),
    (with_v6('"IPv6SubnetMin":"fd00:6::"'), 'IPv6SubnetMin "fd00:6::"', "fd00:5::/48"),
    (with_v6('"IPv6SubnetMax":"fd00:6::"'), 'IPv6SubnetMax "fd00:6::"', "fd00:5::/48"),
    (with_v6('"IPv6SubnetMin":"fd00:5::1"'), 'IPv6SubnetMin "fd00:5::1"', "fd00:5::"),
    (with_v6('"IPv6SubnetMax":"fd00:5:0:1:1::"'), 'IPv6SubnetMax "fd00:5:0:1:1::"', "fd00:5:0:1::"),
    (with_v6('"IPv6SubnetMin":"fd00:5:0:3::","IPv6SubnetMax":"fd00:5:0:2::"'), "IPv6SubnetMin", "fd00:5:0:2::"),
    (with_network('"Backend":null'), "Backend null", "an object"),
    (with_network('"Backend":"udp"'), 'Backend "udp"', "an object"),
    (with_network('"Backend":{}'), 'Backend.Type ""', "unknown backend type"),
    (with_network('"Backend":{"Type":null}'), 'Backend.Type ""', "unknown backend type"),
    (with_network('"Backend":{"Type":"vxlam"}'), 'Backend.Type "vxlam"', "vxlan"),
    (with_network('"Backend":{"Type":7}'), "Backend.Type 7", "in quotes"),
    (with_network('"Backend":{"Type":"udp","Port":"8285"}'), 'Backend.Port "8285"', "without quotes"),
    (with_network('"Backend":{"Type":"udp","Port":0}'), "Backend.Port 0", "from 1 to 65535"),
    (with_network('"Backend":{"Type":"udp","Port":65536}'), "Backend.Port 65536", "from 1 to 65535"),
    (with_network('"Backend":{"Type":"udp","MTU":95}'), "Backend.MTU 95", "from 96 to 65535"),
    (with_network('"Backend":{"Type":"udp","MTU":65536}'), "Backend.MTU 65536", "from 96 to 65535"),
    (with_network('"Backend":{"Type":"udp","MTU":1e3}'), "Backend.MTU 1000.0", "a whole number"),
    ('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"udp","MTU":1327}}',
     "Backend.MTU 1327", "from 1328 to 65535"),
]


@pytest.mark.parametrize(("text", "named", "right"), REFUSED)
def test_a_refusal_is_one_line_that_names_key_value_and_remedy(text: str, named: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(text)
    message = str(caught.value)
    assert named in message
    assert right in message
    assert len(message.splitlines()) == 1


def test_long_values_are_shortened_and_control_characters_escaped() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config('{"Network":"' + "a\\n\\u001b" * 1000 + '"}')
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ('{"Type":"udp"}', UdpConfig(8285, None)),
        ('{"Type":"udp","Port":9000}', UdpConfig(9000, None)),
        ('{"Type":"udp","port":null,"mtu":1400}', UdpConfig(8285, 1400)),
        ('{"Type":"udp","MTU":0,"Other":true}', UdpConfig(8285, None)),
    ],
)
def test_udp_keys(backend: str, expected: UdpConfig) -> None:
    assert parse_udp_config(parse_network_config(with_network(f'"Backend":{backend}'))) == expected
