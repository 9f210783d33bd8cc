"""offload: what the status tells of each."""

from flannel_udp.offload import TUN_OFFLOADS, UDP_OFFLOADS, Granted, Refusal, report


def test_each_offload_is_told_once_and_the_last_word_counts() -> None:
    told = report([Granted(("tun_csum", "tun_uso4"), (Refusal(("tun_tso4", "tun_tso6"), "Invalid argument"),)),
                   Granted(("udp_segment",))], {"udp_segment": "Input/output error"})
    assert [line["offload"] for line in told] == [*TUN_OFFLOADS, *UDP_OFFLOADS]
    states = {line["offload"]: (line["state"], line["reason"]) for line in told}
    assert states["tun_csum"] == states["tun_uso4"] == ("granted", "")
    assert states["tun_tso4"] == states["tun_tso6"] == ("refused", "Invalid argument")
    assert states["tun_ecn"] == states["udp_gro"] == ("off", "switched off by an option")
    assert states["udp_segment"] == ("given up", "Input/output error")
