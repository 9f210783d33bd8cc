"""The firewall's engines and choices against the kernel, without a daemon: texts, refusals, missing programs."""

import contextlib
import shutil
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from flannel_udp import firewall as firewall_module
from flannel_udp.errors import FirewallError
from flannel_udp.firewall import Firewall, Overlay, Rules, command, nft
from flannel_udp.firewall.flannel import leftovers
from flannel_udp.firewall.forwarding import Gate
from flannel_udp.firewall.rules import names_of
from flannel_udp.paths import DEFAULT_RUN_DIR

from ..conftest import require_namespaces
from .firewalled import chains, require_firewalls, table
from .topology import Place

V4 = Overlay(ip_network("10.5.0.0/16"), ip_network("10.5.1.0/24"))
V6 = Overlay(ip_network("fd05::/48"), ip_network("fd05:0:0:1::/64"))
RULES = Rules((V4, V6), masquerade=True, forward=True)
OTHER = Path("/run/another")


@pytest.fixture
def place() -> Iterator[Place]:
    """Be inside a network namespace."""
    require_firewalls()
    require_namespaces()
    one = Place("host")
    with contextlib.closing(one), one.entered():
        yield one


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are found; empty."""
    folder = tmp_path / "sbin"
    folder.mkdir()
    monkeypatch.setattr(command, "PATH", str(folder))
    return folder


def install(folder: Path, *names: str) -> None:
    """Put the system's programs there."""
    for name in names:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


IPTABLES = ("iptables", "iptables-restore", "ip6tables", "ip6tables-restore")


def test_nft_has_flannels_rules_in_their_order(place: Place) -> None:
    assert Firewall(DEFAULT_RUN_DIR).assure(RULES).engine == "nft"
    assert [line.strip() for line in table(place).splitlines()[3:-2]] == [
        "meta mark & 0x00004000 == 0x00004000 return",
        "ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
        "ip6 saddr fd05:0:0:1::/64 ip6 daddr fd05::/48 return",
        "ip6 saddr fd05::/48 ip6 daddr fd05:0:0:1::/64 return",
        "ip6 saddr != fd05::/48 ip6 daddr fd05:0:0:1::/64 return",
        "ip6 saddr fd05::/48 ip6 daddr != ff00::/8 masquerade fully-random",
        "ip6 saddr != fd05::/48 ip6 daddr fd05::/48 masquerade fully-random",
    ]


def test_iptables_has_flannels_rules_in_their_order(place: Place, programs: Path) -> None:
    install(programs, *IPTABLES)
    assert Firewall(DEFAULT_RUN_DIR).assure(RULES).engine == "iptables"
    masq = '-m comment --comment "flannel-udp masq"'
    assert [line.replace("-A FLANNEL-UDP-POSTRTG ", "") for line in chains(place, "iptables").splitlines()
            if line.startswith("-A FLANNEL-UDP-POSTRTG")] == [
        f"{masq} -m mark --mark 0x4000/0x4000 -j RETURN",
        f"-s 10.5.1.0/24 -d 10.5.0.0/16 {masq} -j RETURN",
        f"-s 10.5.0.0/16 -d 10.5.1.0/24 {masq} -j RETURN",
        f"! -s 10.5.0.0/16 -d 10.5.1.0/24 {masq} -j RETURN",
        f"-s 10.5.0.0/16 ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully",
        f"! -s 10.5.0.0/16 -d 10.5.0.0/16 {masq} -j MASQUERADE --random-fully",
    ]
    assert f"-s fd05::/48 ! -d ff00::/8 {masq} -j MASQUERADE" in chains(place, "ip6tables")
    assert "-A FORWARD -m comment --comment \"flannel-udp forward\" -j FLANNEL-UDP-FWD" in chains(place, "ip6tables")


def test_without_programs_masquerading_is_refused_and_forward_rules_are_done_without(
        place: Place, programs: Path) -> None:
    del place, programs
    bare = Firewall(DEFAULT_RUN_DIR)
    with pytest.raises(FirewallError, match="--ip-masq needs nft or iptables"):
        bare.check(RULES)
    forward = Rules((V4,), forward=True)
    bare.check(forward)
    state = bare.assure(forward)
    assert state.engine == "none"
    assert state.reason == "neither nft nor iptables is installed, so forward rules are not set"


def test_nft_that_refuses_gives_way_to_iptables(place: Place, programs: Path) -> None:
    """As on kernels before 5.2, which know no masquerading in an inet table."""
    install(programs, *IPTABLES)
    script(programs, "nft", 'case $1 in -f) echo "Error: Could not process rule: Not supported" >&2; exit 1;; esac')
    firewall = Firewall(DEFAULT_RUN_DIR)
    for _ in range(2):
        state = firewall.assure(RULES)
        assert state.engine == "iptables"
        assert state.reason == "nft refuses: nft -f -: Error: Could not process rule: Not supported"
    assert "MASQUERADE" in chains(place, "iptables")


def test_iptables_that_knows_no_random_ports_goes_without(place: Place, programs: Path) -> None:
    install(programs, *IPTABLES[:1], *IPTABLES[2:])
    restore = shutil.which("iptables-restore")
    script(programs, "iptables-restore", 'text=$(/bin/cat); case $text in *--random-fully*) echo unknown >&2; exit 2;; '
           f'esac; echo "$text" | {restore} "$@"')
    Firewall(DEFAULT_RUN_DIR).assure(RULES)
    assert chains(place, "iptables").count("MASQUERADE\n") == 2


def test_refusal_is_told_and_what_stood_stays(place: Place, programs: Path) -> None:
    install(programs, *IPTABLES)
    firewall = Firewall(DEFAULT_RUN_DIR)
    firewall.assure(RULES)
    before = chains(place, "iptables").count("-A")
    (programs / "iptables-restore").unlink()
    script(programs, "iptables-restore", 'echo "# Warning: something" >&2; echo "iptables-restore: no" >&2; exit 1')
    with pytest.raises(FirewallError, match="iptables-restore: no"):
        firewall.assure(Rules((V4,), masquerade=True))
    assert chains(place, "iptables").count("-A") == before


def test_nothing_is_run_while_nothing_changes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    firewall = Firewall(DEFAULT_RUN_DIR)
    firewall.assure(RULES)
    firewall.assure(RULES)  # what the first one changed is looked at once
    looks: list[object] = []


    def look(_: object) -> list[Gate]:
        looks.append(1)
        return []

    monkeypatch.setattr(firewall_module, "gates", look)
    firewall.assure(RULES)
    assert not looks
    place.run("nft", "add", "table", "inet", "others")
    firewall.assure(RULES)
    assert looks


def test_generation_counts_every_change_of_rules(place: Place) -> None:
    told = [nft.generation()]
    for words in ("nft add table inet x", "iptables -N x", "nft delete table inet x"):
        place.run(*words.split())
        told.append(nft.generation())
    assert None not in told
    assert len(set(told)) == 4


def test_names_of_daemons_never_meet_and_fit(place: Place) -> None:
    one, two = names_of(OTHER), names_of(Path("/run/third"))
    assert len({one, two, names_of(DEFAULT_RUN_DIR)}) == 3
    assert max(len(name) for name in (one.postrouting, one.forward)) <= 28
    for run_dir in (OTHER, DEFAULT_RUN_DIR):
        Firewall(run_dir).assure(RULES)
    Firewall(OTHER).remove()
    assert table(place)
    assert not table(place, f"inet {one.table}")


def test_old_flannels_rules_without_chains_go(place: Place) -> None:
    others = "-A POSTROUTING -s 10.5.0.0/16 -j MASQUERADE"
    for rule in ('-s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN',
                 '-s 10.9.0.0/16 -d 10.9.0.0/16 -m comment --comment "flanneld masq" -j RETURN',
                 others.removeprefix("-A POSTROUTING ")):
        place.run("sh", "-c", f"iptables -t nat -A POSTROUTING {rule}")
    left = leftovers((V4.network,), Firewall(DEFAULT_RUN_DIR).iptables)
    assert [one.what for one in left] == ["1 rules of POSTROUTING"]
    for one in left:
        one.remove()
    rules = chains(place, "iptables")
    assert "-s 10.9.0.0/16 -d 10.9.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN" in rules
    assert others in rules
    assert "-s 10.5.0.0/16 -d" not in rules


CHAIN = """*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {0} ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
-A FLANNEL-POSTRTG -s {1} ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
"""


@pytest.mark.parametrize("legacy", [False, True])
def test_chain_that_two_flannels_share_loses_ours_only(place: Place, legacy: bool) -> None:
    program = "iptables-legacy" if legacy else "iptables"
    place.run(f"{program}-restore", text=CHAIN.format("10.5.0.0/16", "10.9.0.0/16"))
    for one in leftovers((V4.network,), Firewall(DEFAULT_RUN_DIR).iptables):
        one.remove()
    rules = chains(place, program)
    assert "10.5." not in rules
    assert rules.count("-j FLANNEL-POSTRTG") == rules.count("-s 10.9.0.0/16") == 1
    assert leftovers((V4.network,), Firewall(DEFAULT_RUN_DIR).iptables) == []


def test_chain_of_an_earlier_network_that_overlaps_goes(place: Place) -> None:
    place.run("iptables-restore", text=CHAIN.format("10.5.0.0/17", "10.4.0.0/15"))
    for one in leftovers((V4.network,), Firewall(DEFAULT_RUN_DIR).iptables):
        one.remove()
    assert "FLANNEL" not in chains(place, "iptables")


def test_nft_tables_of_another_network_stay(place: Place) -> None:
    for family, name, source in (("ip", "flannel-ipv4", "ip saddr 10.9.0.0/16"), ("ip6", "flannel-ipv6", "")):
        place.run("nft", "-f", "-", text=f"table {family} {name} {{\nchain postrtg {{\n"
                  f"type nat hook postrouting priority 100;\n{source} {'masquerade' if source else ''}\n}}\n}}\n")
    assert [one.what for one in leftovers((V4.network,), [])] == ["nft table ip6 flannel-ipv6"]
    assert [one.what for one in leftovers((ip_network("10.0.0.0/8"),), [])] == [
        "nft table ip flannel-ipv4", "nft table ip6 flannel-ipv6"]
