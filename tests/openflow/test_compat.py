"""os-ken's faults: that ours are around them, and that they are still there to go around."""

import struct

from openflow.compat import DATAPATH, learn, nat, note, ordered_match, parser, serialized


def actions_of(*actions) -> bytes:
    """The actions as bytes, behind flow_mod, empty match and instruction header."""
    instruction = parser.OFPInstructionActions(4, list(actions))
    return serialized(parser.OFPFlowMod(DATAPATH, instructions=[instruction]))[64:]


def lengths(actions: bytes) -> list[int]:
    """How long each action says it is; fails if they do not fill the bytes exactly."""
    found = []
    while actions:
        (length,) = struct.unpack_from("!xxH", actions)
        found.append(length)
        assert 0 < length <= len(actions)
        actions = actions[length:]
    return found


def ct(*inner):
    return parser.NXActionCT(
        flags=1, zone_src="", zone_ofs_nbits=1, recirc_table=4, alg=0, actions=list(inner)
    )


def test_nat_fills_the_length_it_claims():
    inside = actions_of(ct(nat(1, "192.0.2.1"), parser.OFPActionSetField(ct_mark=1)))[24:]
    assert lengths(inside) == [24, 16]


def test_os_ken_still_forgets_nat_s_padding():
    theirs = parser.NXActionNAT(1, range_ipv4_min="192.0.2.1")
    inside = actions_of(ct(theirs, parser.OFPActionSetField(ct_mark=1)))[24:]
    assert struct.unpack_from("!xxH", inside) == (24,)
    assert struct.unpack_from("!HH", inside, 20) == (25, 16)  # the set_field, 4 bytes early


def bucket_of(*actions) -> bytes:
    """The actions of a bucket and its weight."""
    weight = parser.OFPGroupBucketPropWeight(0, weight=3)
    group = parser.OFPGroupMod(DATAPATH, 0, 1, buckets=[parser.OFPBucket(1, actions, [weight])])
    return serialized(group)[32:]


def test_learn_fills_the_length_it_claims():
    spec = parser.NXFlowSpecMatch(src=0x0800, dst=("eth_type_nxm", 0), n_bits=16)
    assert lengths(bucket_of(learn(5, [spec]))) == [48, 8]
    theirs = parser.NXActionLearn(5, [spec])
    assert struct.unpack_from("!H", bucket_of(theirs), 2) == (48,)
    assert bucket_of(theirs)[42:] == b"\0\0\0\x08\0\3\0\0"  # the weight, 6 bytes early


def test_matches_keep_their_order():
    fields = [("eth_type", 0x0800), ("ip_frag", 1), ("ipv4_src", "192.0.2.1")]
    assert ordered_match(fields).items() == fields
    theirs = parser.OFPMatch(**dict(fields)).items()
    assert [name for name, _ in theirs] == ["ip_frag", "eth_type", "ipv4_src"]


def test_a_note_s_bytes_stay_the_caller_s():
    data = bytearray(b"1234567")
    assert lengths(actions_of(note(data))) == [24]
    assert data == b"1234567"
