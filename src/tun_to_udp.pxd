# Out: packets that the kernel routes into the TUN leave as datagrams for the node that leases their destination.
#
#   read (tun) -> decide (forward) -> dress (segment, encap) into runs -> send; what ends here is answered with ICMP
#
# Where flows leave by several sockets a batch is dressed socket by socket: packets of a flow keep their order, and what
# lies between those of another socket still makes one run.
#
# Each pass goes over one batch. A batch ends when the TUN has no more, or after a few super-packets, while they are
# still in cache; then the loop sends. Nothing waits for company: only what is queued already is batched. Owns the
# Way's batch and run; the block is borrowed from rcu_online() to the end of the batch.

from libc.errno cimport EAGAIN
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.time cimport timespec

from batch cimport BATCH_GAP, BATCH_PACKETS, Packet, batch_add, batch_clear, batch_has_room, batch_pass
from block cimport Block
from coat cimport coat_mac
from counters cimport (BAD_HEADER, BATCHES, FORWARD, FRAMES, NEIGHBOUR_TOLD, NEIGHBOUR_UNKNOWN, NOT_IP, OTHER_ETHERTYPE,
                       OTHER_FAMILY, SUPER_PACKETS, TRUNCATED, Outcome, count_event)
from ecn cimport ecn_of
from encap cimport coat_on
from fib cimport FIRST_PEER
from flow cimport flow_hash
from forward cimport forward_out, next_hop
from inner cimport inner_check
from neighbour cimport arp_answer, arp_asks, asked_for, is_arp, is_solicitation, neighbour_answer
from peer cimport AF_INET, Peer
from rcu cimport rcu_offline, rcu_online
from run cimport RUN_PACKETS, run_join, run_piece, run_takes
from segment cimport (Template, is_super, segment_complete, segment_header, segment_payload, segment_plan)
from send cimport send_run
from tun cimport tun_read, tun_write
from way cimport POLLIN, Way, answer, monotonic, wait_for
from wire.arp cimport ArpHeader
from wire.ethernet cimport EthernetHeader
from wire.vnet_hdr cimport VNET_HDR, VnetHeader


cdef inline int read_packets(Way *way) noexcept nogil:
    """Fill the batch from the TUN; return 1 if there may be more, 0 if it is drained, or -errno."""
    cdef uint32_t at
    cdef ssize_t length
    batch_clear(&way.batch)
    while batch_has_room(&way.batch, 1):
        at = way.batch.cursor + BATCH_GAP
        length = tun_read(way.tun, way.batch.arena + at, way.vnet, way.link)
        if length < 0:
            return 0 if length == -EAGAIN else <int>length
        count_event(&way.counters, FRAMES)
        batch_add(&way.batch, at, <uint32_t>length)
        batch_pass(&way.batch, at + <uint32_t>length)
    return 1


cdef inline Outcome take_offload(Way *way, const Packet *packet, Template *plan) noexcept nogil:
    """Do what the kernel left to its device: finish a checksum, or plan the segments of a super-packet."""
    cdef uint8_t *inner = way.batch.arena + packet.at
    cdef VnetHeader *vnet = <VnetHeader *>(inner - way.link - VNET_HDR)
    cdef Outcome outcome
    # Offsets count from the frame on, which is the packet for whoever comes next.
    vnet.csum_start -= <uint16_t>way.link
    if not is_super(vnet):
        return segment_complete(inner, packet.length, vnet)
    outcome = segment_plan(plan, inner, packet.length, vnet)
    if outcome == FORWARD:
        count_event(&way.counters, SUPER_PACKETS)
    else:
        plan.count = 0
    return outcome


cdef inline Outcome tell_neighbour(Way *way, const Block *block, const uint8_t *question) noexcept nogil:
    """Answer a neighbour question from the table, where it asks for an address that a peer leases."""
    cdef uint32_t slot = next_hop(block, asked_for(4 if way.rules.family == AF_INET else 6, question))
    cdef const EthernetHeader *ethernet = <const EthernetHeader *>(question - sizeof(EthernetHeader))
    cdef const uint8_t *mac
    cdef uint32_t length
    if slot < FIRST_PEER:
        return NEIGHBOUR_UNKNOWN
    mac = coat_mac(block.peers.slots[slot].coat)
    if way.rules.family == AF_INET:
        length = arp_answer(way.error, <const ArpHeader *>question, mac)
    else:
        length = neighbour_answer(way.error, question, ethernet.source, mac)
    tun_write(way.tun, way.error, length, way.vnet)
    return NEIGHBOUR_TOLD


cdef inline Outcome tap_frame(Way *way, const Block *block, const Packet *packet) noexcept nogil:
    """Decide on what an Ethernet frame holds: FORWARD where it is a packet of our family that asks for no neighbour."""
    cdef const uint8_t *inner = way.batch.arena + packet.at
    cdef uint32_t length = packet.length
    if is_arp(inner - sizeof(EthernetHeader)):
        if way.rules.family != AF_INET or not arp_asks(<const ArpHeader *>inner, length):
            return NEIGHBOUR_UNKNOWN
        return tell_neighbour(way, block, inner)
    if (<const EthernetHeader *>(inner - sizeof(EthernetHeader))).ethertype != way.rules.expected.ethernet.ethertype:
        return OTHER_ETHERTYPE
    if (way.rules.family != AF_INET and inner_check(way.rules.family, inner, &length) == FORWARD
            and is_solicitation(inner, length)):
        return tell_neighbour(way, block, inner)
    return FORWARD


cdef inline Outcome decide(Way *way, const Block *block, Packet *packet, Template *plan) noexcept nogil:
    """Return a packet's outcome, or FORWARD; plan.count: segments of a super-packet, 0 for a plain packet."""
    cdef Outcome outcome = tap_frame(way, block, packet) if way.link else FORWARD
    cdef Outcome offload
    plan.count = 0
    if outcome != FORWARD:
        return outcome
    outcome = forward_out(block, &way.rules, way.batch.arena, packet)
    if way.vnet and outcome not in (NOT_IP, OTHER_FAMILY, BAD_HEADER, TRUNCATED):
        offload = take_offload(way, packet, plan)
        outcome = offload if outcome == FORWARD else outcome
    return outcome


cdef inline uint16_t source_of(const Way *way, const Packet *packet) noexcept nogil:
    """Choose by its flow the socket that a packet leaves by."""
    cdef uint32_t flow
    if way.source_count == 1:
        return 0
    flow = flow_hash(way.rules.family, way.batch.arena + packet.at, packet.length)
    return <uint16_t>(<uint64_t>flow * way.source_count >> 32)


cdef inline uint32_t lane_of(const Way *way, const Packet *packet) noexcept nogil:
    """Return the lane of a packet: its socket, and its ECN bits where they are to be seen."""
    cdef uint32_t ecn = ecn_of(way.rules.family, way.batch.arena + packet.at) if way.rules.ecn else 0
    return <uint32_t>packet.message << 2 | ecn


cdef inline void join(Way *way, const Block *block, uint32_t slot, uint32_t lane, uint32_t length) noexcept nogil:
    """Make room in the run for a datagram of `length` bytes to a peer, sending what does not go with it."""
    # Where messages are not cut by the kernel a run only saves system calls, and may be as long as it can.
    cdef uint32_t most = way.run_most if way.run_most > 1 else RUN_PACKETS
    if not run_takes(&way.run, slot, lane, length, most):
        send_run(way, block)
    run_join(&way.run, slot, lane, length)


cdef inline void dress(Way *way, const Block *block, const Packet *packet) noexcept nogil:
    """Put the coat on a packet and enter it into the run."""
    cdef uint8_t *inner = way.batch.arena + packet.at
    cdef uint32_t coat = way.rules.coat_length
    coat_on(&way.rules, &block.peers.slots[packet.slot], inner)
    join(way, block, packet.slot, lane_of(way, packet), coat + packet.length)
    run_piece(&way.run, inner - coat, coat + packet.length)


cdef inline void dress_super(Way *way, const Block *block, const Packet *packet, const Template *plan) noexcept nogil:
    """Divide a super-packet: enter each segment into the run, its headers written anew, its payload where it lies."""
    cdef const uint8_t *inner = way.batch.arena + packet.at
    cdef const Peer *peer = &block.peers.slots[packet.slot]
    cdef uint32_t coat = way.rules.coat_length
    cdef uint32_t lane = lane_of(way, packet)
    cdef uint32_t payload, i
    cdef uint8_t *header
    for i in range(plan.count):
        payload = segment_payload(plan, i)
        join(way, block, packet.slot, lane, coat + plan.header + payload)
        header = way.run.headers[way.run.count - 1]
        segment_header(plan, inner, i, header + coat)
        coat_on(&way.rules, peer, header + coat)
        run_piece(&way.run, header, coat + plan.header)
        run_piece(&way.run, inner + plan.header + i * plan.size, payload)


cdef inline void dress_any(Way *way, const Block *block, const Packet *packet, const Template *plan) noexcept nogil:
    """Enter a packet into the run, as one or divided."""
    if plan.count:
        dress_super(way, block, packet, plan)
    else:
        dress(way, block, packet)


cdef inline void dress_by_source(Way *way, const Block *block, const Template *plans, uint64_t sources) noexcept nogil:
    """Dress what is to be forwarded, socket by socket; `sources` has a bit for each that is needed."""
    cdef const Packet *packet
    cdef uint32_t source, i
    for source in range(way.source_count):
        for i in range(way.batch.count if sources >> source & 1 else 0):
            packet = &way.batch.packets[i]
            if packet.outcome == FORWARD and packet.message == source:
                dress_any(way, block, packet, &plans[i])


cdef inline void dress_packets(Way *way, const Block *block) noexcept nogil:
    """Dress and send all that is to be forwarded, each socket's in order; answer and count what ends here."""
    cdef Template plans[BATCH_PACKETS]
    cdef uint64_t sources = 0
    cdef Packet *packet
    cdef uint32_t i
    way.waited = False
    way.now = monotonic()
    for i in range(way.batch.count):
        packet = &way.batch.packets[i]
        packet.outcome = <uint8_t>decide(way, block, packet, &plans[i])
        packet.message = source_of(way, packet) if packet.outcome == FORWARD else 0
        way.counters.packets_in += max(plans[i].count, <uint32_t>1)
        if packet.outcome != FORWARD:
            way.counters.outcome[packet.outcome] += max(plans[i].count, <uint32_t>1)
            answer(way, block, way.batch.arena + packet.at, packet.length, <Outcome>packet.outcome, 0)
        elif way.source_count == 1:
            dress_any(way, block, packet, &plans[i])
        else:
            sources |= <uint64_t>1 << packet.message
    if sources:
        dress_by_source(way, block, plans, sources)
    send_run(way, block)


cdef inline int out_batch(Way *way) noexcept nogil:
    """Forward one batch; return 1 if there may be more, 0 if the TUN is drained, or -errno if it failed."""
    cdef const Block *block = <const Block *>rcu_online(way.rcu, way.reader)
    cdef int more = read_packets(way)
    if way.batch.count:
        count_event(&way.counters, BATCHES)
        dress_packets(way, block)
    rcu_offline(way.reader)
    return more


cdef inline int tun_to_udp(Way *way) noexcept nogil:
    """Run until stop (0) or until the TUN fails (-errno)."""
    cdef timespec at_once
    cdef int more
    at_once.tv_sec, at_once.tv_nsec = 0, 0
    while True:
        more = out_batch(way)
        if more < 0:
            return more
        # Drained: sleep. Otherwise only look, since a flood must not keep the loop from seeing stop.
        more = wait_for(way, way.tun, POLLIN, &at_once if more else NULL)
        if more <= 0:
            return more
