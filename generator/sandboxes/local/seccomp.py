"""The filter of system calls that every sandbox runs under, as a program for the kernel's BPF.

Namespaces and the lack of capabilities hold already; the filter keeps untrusted code away from the
parts of the kernel in which ways around them are found again and again. It is a list of what is
refused (`syscalls.py`), for apps use what their languages use; calls younger than the list do not
exist inside. Verdicts that need no argument are remembered by the kernel, so they cost nothing.

Layout of `seccomp_data`, and what is returned: seccomp(2). Of arguments only the lower half is
looked at, as the kernel does with those that are examined here.
"""

import struct
from collections.abc import Mapping
from errno import EAFNOSUPPORT, ENOPROTOOPT, ENOSYS, EPERM, EPROTONOSUPPORT
from functools import cache
from typing import NamedTuple

from generator.sandboxes.local.syscalls import DENIED, FIRST_UNKNOWN

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL = 0x80000000

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, _SOCK_TYPE = 1, 2, 0xF
IPPROTO_TCP, IPPROTO_UDP, NETLINK_ROUTE = 6, 17, 0
TCP_ULP = 31
CLONE_NEW = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of <linux/sched.h>."""
TERMINAL_REQUESTS = (0x5412, 0x541C, 0x541D, 0x5423)
"""TIOCSTI types into a terminal, TIOCLINUX pastes; TIOCCONS takes the console, TIOCSETD loads
line disciplines."""
PERSONALITIES = (0, 8, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, and the question which it is; nothing that weakens address layout."""


class Machine(NamedTuple):
    """An architecture: what AUDIT_ARCH_… it is, and its calls that depend on their arguments."""

    arch: int
    clone: int
    ioctl: int
    personality: int
    setsockopt: int
    socket: int
    socketpair: int


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(0xC000003E, 56, 16, 135, 54, 41, 53),
    "aarch64": Machine(0xC00000B7, 220, 29, 92, 208, 198, 199),
}


class Instruction(NamedTuple):
    """`sock_filter` of <linux/filter.h>; jumps are relative to the next instruction."""

    code: int
    if_true: int
    if_false: int
    k: int


Block = list[Instruction]


@cache
def program(machine: str) -> bytes:
    """The filter for bubblewrap's `--seccomp`. Raises `KeyError` for an unknown architecture."""
    return b"".join(struct.pack("<HBBI", *one) for one in instructions(machine))


def instructions(machine: str) -> Block:
    """The filter as instructions."""
    known = MACHINES[machine]
    block = [
        _load(_ARCH_AT),
        # Another architecture's numbers, by int 0x80 on x86-64: no compiler here makes them.
        *_unless(Instruction(_EQUAL, 0, 0, known.arch), [_return(KILL)]),
        _load(_NUMBER_AT),
        # x32 has bit 30 set, so it is among them.
        *_when(_AT_LEAST, FIRST_UNKNOWN, [_error(ENOSYS)]),
    ]
    for denied in DENIED:
        number = denied.x86_64 if machine == "x86_64" else denied.aarch64
        if number is not None:
            block += _equal(number, [_error(denied.error)])
    for number, verdict in _by_arguments(known).items():
        block += _equal(number, verdict)
    return [*block, _return(ALLOW)]


def _by_arguments(machine: Machine) -> dict[int, Block]:
    allow = _return(ALLOW)
    internet = [
        _argument(1),
        Instruction(_AND, 0, 0, _SOCK_TYPE),
        *_equal(SOCK_STREAM, _one_of(2, (0, IPPROTO_TCP), EPROTONOSUPPORT)),
        *_equal(SOCK_DGRAM, _one_of(2, (0, IPPROTO_UDP), EPROTONOSUPPORT)),
        _error(EPERM),
    ]
    return {
        machine.clone: [_argument(0), *_when(_ANY_BIT, CLONE_NEW, [_error(EPERM)]), allow],
        machine.ioctl: [
            _argument(1),
            *(step for request in TERMINAL_REQUESTS for step in _equal(request, [_error(EPERM)])),
            allow,
        ],
        machine.personality: _one_of(0, PERSONALITIES, EPERM),
        # The kernel's own TLS, and whatever else may be put on top of a connection.
        machine.setsockopt: [
            _argument(1),
            *_equal(IPPROTO_TCP, [_argument(2), *_equal(TCP_ULP, [_error(ENOPROTOOPT)]), allow]),
            allow,
        ],
        machine.socket: [
            _argument(0),
            *_equal(AF_UNIX, [allow]),
            *_equal(AF_INET, internet),
            *_equal(AF_INET6, internet),
            # Libraries list their interfaces with it.
            *_equal(AF_NETLINK, _one_of(2, (NETLINK_ROUTE,), EPROTONOSUPPORT)),
            _error(EAFNOSUPPORT),
        ],
        machine.socketpair: _one_of(0, (AF_UNIX,), EAFNOSUPPORT),
    }


def _one_of(argument: int, values: tuple[int, ...], error: int) -> Block:
    """Allow the call if its argument is one of `values`."""
    allowed = (step for value in values for step in _equal(value, [_return(ALLOW)]))
    return [_argument(argument), *allowed, _error(error)]


def _equal(value: int, then: Block) -> Block:
    return _when(_EQUAL, value, then)


def _when(test: int, value: int, then: Block) -> Block:
    """`then`, which must end with a verdict, when the test holds; else what follows."""
    return [Instruction(test, 0, len(then), value), *then]


def _unless(test: Instruction, then: Block) -> Block:
    return [test._replace(if_true=len(then)), *then]


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _argument(index: int) -> Instruction:
    return _load(_ARGUMENTS_AT + 8 * index)


def _error(number: int) -> Instruction:
    return _return(ERRNO | number)


def _return(value: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, value)
