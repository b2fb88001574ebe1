"""What nftables rules mean for ports, iptables-nft's included: records of a dump in, a `RuleSet` out. Pure.

The kernel keeps a rule as a little program: load a field into a register, compare, look up in a set, at last a verdict
or a translation. It is run here with what is not known left open (`nft_conditions`): each lookup in a map forks it, one
`Case` for each element. `man 8 nft`, net/netfilter/nft_*.c and `nft --debug=netlink` show the expressions.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from guestagent import xtables
from guestagent.nat_rules import IPV4 as ONLY_IPV4
from guestagent.nat_rules import IPV6 as ONLY_IPV6
from guestagent.nat_rules import Case, Packets, Rule, Target, Verdict
from guestagent.netlink import KernelDataError
from guestagent.nft_conditions import ALL, SOME, Field, Left, UnknownRuleError, bounds, outside, together, within
from guestagent.nft_dump import IPV4, IPV6, Attributes, RuleRecord, attributes_of, items, number, text
from guestagent.nft_sets import Element, KernelVerdict, SetContents, read_data

MAX_CASES = 20_000
"""Cases of one rule: a map's elements. A larger map is not understood."""

_NEW = (8).to_bytes(4, sys.byteorder)  # NF_CT_STATE_BIT(IP_CT_NEW)
_PAYLOAD = {
    (IPV4, 1, 9): "l4proto", (IPV4, 1, 12): "source", (IPV4, 1, 16): "daddr4",
    (IPV6, 1, 6): "l4proto", (IPV6, 1, 8): "source", (IPV6, 1, 24): "daddr6",
}  # fmt: skip
"""Fields of the network header by family and offset."""
_META = {1: ("ethertype", 2), 4: ("iif", 4), 5: ("oif", 4), 6: ("iifname", 16), 7: ("oifname", 16),
         15: ("nfproto", 1), 16: ("l4proto", 1), 24: ("chance", 4)}  # fmt: skip
_MARK, _PACKET_TYPE = 3, 19
_HARMLESS = frozenset({"counter", "log", "objref", "last", "notrack", "dynset"})
_PERHAPS = frozenset({"limit", "quota", "connlimit"})
_VERDICTS = {0: Verdict.STOP, 1: Verdict.STOP, -3: Verdict.JUMP, -4: Verdict.GOTO, -5: Verdict.RETURN}
_DESTINATION_NAT, _NETMAP = 1, 1 << 6
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT

SetName = tuple[int, str, str]
"""Family, table, set."""


@dataclass(slots=True)
class _Draft:
    """One run of a rule's program up to some expression."""

    packets: Packets
    registers: dict[int, bytes | Field]
    exact: bool = True

    def narrowed(self, left: Iterable[Left]) -> list[_Draft]:
        """The runs that go on with one of `left`."""
        met = ((self.packets.meet(one.packets), one.exact) for one in left)
        return [_Draft(packets, dict(self.registers), self.exact and exact) for packets, exact in met if packets]

    def store(self, register: bytes, value: bytes | Field) -> None:
        slot = _slot(register)
        if isinstance(value, Field):
            self.registers[slot] = value
            return
        for offset in range(0, len(value), 4):
            self.registers[slot + offset // 4] = value[offset : offset + 4].ljust(4, b"\0")

    def load(self, slot: int, what: str) -> bytes | Field:
        if slot not in self.registers:
            raise UnknownRuleError(what)
        return self.registers[slot]

    def constant(self, slot: int, size: int) -> bytes:
        """`size` known bytes from `slot` on. Raises `UnknownRuleError`."""
        parts = [self.load(slot + i, "a computed value") for i in range((size + 3) // 4)]
        if any(isinstance(part, Field) for part in parts):
            raise UnknownRuleError("a translation to an address out of the packet")
        return b"".join(part for part in parts if isinstance(part, bytes))[:size]


def _slot(register: bytes) -> int:
    """Number of the 32-bit register; the old numbers 1 to 4 mean 128 bits each (nft_parse_register)."""
    code = number(register)
    return code * 4 if code <= 4 else code - 4


class _Program:
    """Runs one rule."""

    def __init__(self, record: RuleRecord, sets: Mapping[SetName, SetContents], interfaces: Mapping[int, str]) -> None:
        self._record = record
        self._sets = sets
        self._interfaces = interfaces
        self._cases: list[Case] = []
        self.comment = _comment_of(record.user_data)
        self.compat = False
        self._actions: dict[str, Callable[[_Draft, Attributes], list[_Draft]]] = {
            "meta": self._meta,
            "payload": self._payload,
            "ct": self._conntrack,
            "fib": self._fib,
            "numgen": self._count,
            "hash": self._hash,
            "cmp": self._compare,
            "range": self._range,
            "bitwise": self._bitwise,
            "lookup": self._look_up,
            "immediate": self._immediate,
            "nat": self._translate,
            "redir": self._redirect,
            "match": self._match,
            "target": self._target,
        }

    def run(self) -> tuple[Case, ...]:
        """All cases. Raises `UnknownRuleError` or `KernelDataError`."""
        drafts = [_Draft(Packets(), {})]
        for packed in items(self._record.expressions):
            if not drafts:
                break
            expression = attributes_of(packed)
            name = text(expression.get(1, b""))
            if name in _HARMLESS:
                continue
            if name in _PERHAPS:
                drafts = [one for draft in drafts for one in draft.narrowed(SOME)]
                continue
            action = self._actions.get(name)
            if action is None:
                raise UnknownRuleError(f"expression {name}")
            data = attributes_of(expression.get(2, b""))
            try:
                drafts = [following for draft in drafts for following in action(draft, data)]
            except KeyError as exc:
                raise KernelDataError(f"the nftables expression {name} lacks attribute {exc}") from exc
            if len(drafts) + len(self._cases) > MAX_CASES:
                raise UnknownRuleError(f"more than {MAX_CASES} cases in one rule")
        return tuple(self._cases)

    # ------------------------------------------------------------------ loads

    def _meta(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        if 1 in data:
            key = number(data[2])
            if key in _META:
                draft.store(data[1], Field(*_META[key]))
            elif key in (_MARK, _PACKET_TYPE):  # no mark; PACKET_HOST
                draft.store(data[1], bytes(4))
            else:
                raise UnknownRuleError(f"meta key {key}")
        return [draft]  # without a destination it sets a mark or the like

    def _payload(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        if 1 not in data:
            raise UnknownRuleError("a rule that rewrites packets")
        base, offset, size = number(data[2]), number(data[3]), number(data[4])
        if base == 2 and (offset, size) in ((0, 2), (2, 2)):
            draft.store(data[1], Field("dport" if offset else "source", size))
            return [draft]
        families = {IPV4: [IPV4], IPV6: [IPV6]}.get(self._record.family, [IPV4, IPV6])
        wanted = {4: IPV4, 6: IPV6}
        families = [f for f in families if any(wanted[version] == f for version in draft.packets.families)]
        names = {_PAYLOAD.get((family, base, offset)) for family in families}
        name = names.pop() if len(names) == 1 else None
        if name is None:
            raise UnknownRuleError("a part of the packet other than its addresses and ports")
        draft.store(data[1], Field(name, size))
        return [draft]

    def _conntrack(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        if 1 in data:
            key = number(data[2])
            if key > 3:
                raise UnknownRuleError(f"ct key {key}")
            draft.store(data[1], _NEW if key == 0 else bytes(4))
        return [draft]

    def _fib(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        result, flags = number(data[2]), number(data[3])
        if result != 3 or not flags & 3:
            raise UnknownRuleError("a look at the routing table")
        draft.store(data[1], Field("daddr type" if flags & 2 else "source", 4))
        return [draft]

    def _count(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        draft.store(data[1], Field("chance", 4))
        return [draft]

    def _hash(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        draft.store(data[2], Field("chance", 4))
        return [draft]

    # ------------------------------------------------------------------ conditions

    def _compare(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        operation, wanted = number(data[2]), read_data(data[3])
        register = draft.load(_slot(data[1]), "a comparison")
        if isinstance(wanted, KernelVerdict):
            raise KernelDataError("nftables compares with a verdict")
        low, high, inverted = bounds(operation, wanted)
        if isinstance(register, bytes):
            known = draft.constant(_slot(data[1]), len(wanted))
            return [draft] if (low <= known <= high) != inverted else []
        if low > high:
            return []
        return draft.narrowed(self._decide(register, low, high, inverted))

    def _range(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        low, high = read_data(data[3]), read_data(data[4])
        register = draft.load(_slot(data[1]), "a comparison")
        if isinstance(low, KernelVerdict) or isinstance(high, KernelVerdict):
            raise KernelDataError("nftables compares with a verdict")
        if isinstance(register, bytes):
            raise UnknownRuleError("a range of what is no field")
        return draft.narrowed(self._decide(register, low, high, number(data[2]) == 1))

    def _decide(self, field: Field, low: bytes, high: bytes, inverted: bool) -> list[Left]:
        decide = outside if inverted else within
        return decide(field, low, high, self._interfaces)

    def _bitwise(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        if number(data.get(6, bytes(4))):
            raise UnknownRuleError("a shift")
        mask, xor = read_data(data[4]), read_data(data[5])
        register = draft.load(_slot(data[1]), "a mask")
        if isinstance(mask, KernelVerdict) or isinstance(xor, KernelVerdict):
            raise KernelDataError("an nftables mask is a verdict")
        if isinstance(register, bytes):
            known = draft.constant(_slot(data[1]), len(mask))
            draft.store(data[2], bytes(a & b ^ c for a, b, c in zip(known, mask, xor.ljust(len(mask)), strict=False)))
            return [draft]
        if register.name != "chance" and (any(xor) or register.name not in ("daddr4", "daddr6", "source")):
            raise UnknownRuleError(f"a mask on {register.name}")
        draft.store(data[2], replace(register, mask=mask))
        return [draft]

    def _look_up(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        name = text(data[1])
        contents = self._sets.get((self._record.family, self._record.table, name))
        if contents is None:
            raise UnknownRuleError("a set that is not there")
        key = self._key(draft, _slot(data[2]), contents.record.key_size)
        if number(data.get(5, bytes(4))) & 1:
            return draft.narrowed(self._outside_all(key, contents))
        found: list[_Draft] = []
        if 3 not in data:
            return draft.narrowed(together([left for one in contents.elements for left in self._hit(key, one)]))
        for element in contents.elements:
            for following in draft.narrowed(self._hit(key, element)):
                if element.verdict is None:
                    following.store(data[3], element.data)
                    found.append(following)
                else:
                    found += self._give_verdict(following, element.verdict)
        return found

    def _key(self, draft: _Draft, slot: int, size: int) -> list[bytes | Field]:
        """The fields in the registers that make up a key."""
        key: list[bytes | Field] = []
        while size > 0:
            part = draft.load(slot, "a lookup")
            width = (part.size + 3) // 4 if isinstance(part, Field) else 1
            key.append(part)
            slot, size = slot + width, size - 4 * width
        return key

    def _hit(self, key: list[bytes | Field], element: Element) -> list[Left]:
        if element.catch_all:
            return SOME
        left, offset = ALL, 0
        for part in key:
            size = part.size if isinstance(part, Field) else min(4, len(element.low) - offset)
            low, high = element.low[offset : offset + size], element.high[offset : offset + size]
            offset += -(-size // 4) * 4
            if isinstance(part, bytes):
                left = left if low <= part[:size] <= high else []
                continue
            here = within(part, low, high, self._interfaces)
            met = ((a.packets.meet(b.packets), a.exact and b.exact) for a in left for b in here)
            left = [Left(packets, exact) for packets, exact in met if packets]
        return left

    def _outside_all(self, key: list[bytes | Field], contents: SetContents) -> list[Left]:
        if len(key) != 1 or not isinstance(key[0], Field):
            return SOME
        left = ALL
        for element in contents.elements:
            size = key[0].size
            here = outside(key[0], element.low[:size], element.high[:size], self._interfaces)
            met = ((a.packets.meet(b.packets), a.exact and b.exact) for a in left for b in here)
            left = [Left(packets, exact) for packets, exact in met if packets]
        return left

    # ------------------------------------------------------------------ what happens

    def _immediate(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        value = read_data(data[2])
        if isinstance(value, KernelVerdict):
            return self._give_verdict(draft, value)
        draft.store(data[1], value)
        return [draft]

    def _give_verdict(self, draft: _Draft, given: KernelVerdict) -> list[_Draft]:
        if given.code == -1:  # NFT_CONTINUE
            return [draft]
        verdict = _VERDICTS.get(given.code, Verdict.STOP)
        self._cases.append(Case(draft.packets, verdict=verdict, chain=given.chain, exact=draft.exact))
        return []

    def _translate(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        if number(data[1]) != _DESTINATION_NAT:
            return []
        if number(data.get(7, bytes(4))) & _NETMAP:
            raise UnknownRuleError("a translation of networks")
        families = {IPV4: ONLY_IPV4, IPV6: ONLY_IPV6}.get(number(data[2]), draft.packets.families)
        address = ""
        if 3 in data:
            size = 4 if families == ONLY_IPV4 else 16
            address = str(ipaddress.ip_address(draft.constant(_slot(data[3]), size)))
        return self._send(draft, families, Target(address, self._port(draft, data.get(5))))

    def _redirect(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        return self._send(draft, draft.packets.families, Target("", self._port(draft, data.get(1))))

    def _port(self, draft: _Draft, register: bytes | None) -> int:
        return 0 if register is None else int.from_bytes(draft.constant(_slot(register), 2), "big")

    def _send(self, draft: _Draft, families: frozenset[int], target: Target) -> list[_Draft]:
        if packets := draft.packets.meet(Packets(families=families)):
            self._cases.append(Case(packets, target=target, exact=draft.exact))
        return []

    # ------------------------------------------------------------------ iptables-nft

    def _match(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        self.compat = True
        name = text(data[1])
        condition = xtables.read_match(name, number(data[2]), data[3])
        if condition is None:
            raise UnknownRuleError(f"match {name}")
        self.comment = condition.comment or self.comment
        if condition.packets is None:
            return []
        return draft.narrowed([Left(condition.packets, condition.exact)])

    def _target(self, draft: _Draft, data: Attributes) -> list[_Draft]:
        self.compat = True
        name, ipv6 = text(data[1]), self._record.family == IPV6
        if target := xtables.read_target(name, number(data[2]), data[3], ipv6=ipv6):
            return self._send(draft, ONLY_IPV6 if ipv6 else ONLY_IPV4, target)
        if name in xtables.HARMLESS_TARGETS:
            return [draft]
        raise UnknownRuleError(f"target {name}")


def _comment_of(user_data: bytes) -> str:
    """The comment among nft's own notes: type, length, value (libnftnl/udata.h)."""
    offset = 0
    while offset + 2 <= len(user_data):
        kind, size = user_data[offset], user_data[offset + 1]
        if kind == _COMMENT:
            return text(user_data[offset + 2 : offset + 2 + size])
        offset += 2 + size
    return ""


def compile_rule(record: RuleRecord, sets: Mapping[SetName, SetContents], interfaces: Mapping[int, str]) -> Rule:
    """What one rule means. Raises `KernelDataError`."""
    program = _Program(record, sets, interfaces)
    try:
        cases, unknown = program.run(), ""
    except UnknownRuleError as exc:
        cases, unknown = (), str(exc)
    of_iptables = program.compat or (record.table == "nat" and record.family in (IPV4, IPV6))
    return Rule(cases, unknown, "iptables" if of_iptables else "nftables", program.comment)
