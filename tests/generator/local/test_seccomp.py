"""What the filter says to each system call, on both architectures, read as the kernel does."""

import re
from errno import EAFNOSUPPORT, ENOPROTOOPT, ENOSYS, EPERM, EPROTONOSUPPORT
from pathlib import Path

import pytest

from generator.sandboxes.local.seccomp import (
    ALLOW,
    ERRNO,
    KILL,
    MACHINES,
    Machine,
    instructions,
    program,
)
from generator.sandboxes.local.syscalls import DENIED, FIRST_UNKNOWN

LONGEST_PROGRAM = 4096
"""BPF_MAXINSNS of <linux/bpf_common.h>."""

READ = {"x86_64": 0, "aarch64": 63}
EXECVE = {"x86_64": 59, "aarch64": 221}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}

each_machine = pytest.mark.parametrize("machine", sorted(MACHINES))


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run the filter on one call, as <linux/filter.h> defines its instructions."""
    words = {0: number, 4: MACHINES[machine].arch if arch is None else arch}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index] = value & 0xFFFFFFFF
        words[20 + 8 * index] = value >> 32 & 0xFFFFFFFF
    code, at, accumulator = instructions(machine), 0, 0
    while True:
        step = code[at]
        at += 1
        match step.code:
            case 0x20:
                accumulator = words[step.k]
            case 0x54:
                accumulator &= step.k
            case 0x06:
                return step.k
            case 0x15:
                at += step.if_true if accumulator == step.k else step.if_false
            case 0x35:
                at += step.if_true if accumulator >= step.k else step.if_false
            case 0x45:
                at += step.if_true if accumulator & step.k else step.if_false
            case other:
                pytest.fail(f"no instruction of ours: {other:#x}")


def numbers(machine: str) -> dict[str, int]:
    found = {
        denied.name: denied.x86_64 if machine == "x86_64" else denied.aarch64 for denied in DENIED
    }
    return {name: number for name, number in found.items() if number is not None}


@each_machine
def test_each_call_of_the_list_is_refused_as_it_says(machine: str) -> None:
    for denied in DENIED:
        number = denied.x86_64 if machine == "x86_64" else denied.aarch64
        if number is not None:
            assert verdict(machine, number) == ERRNO | denied.error, denied.name
    assert len(set(numbers(machine).values())) == len(numbers(machine))


@each_machine
def test_every_other_call_is_allowed_up_to_the_last_one_known(machine: str) -> None:
    refused = set(numbers(machine).values())
    by_arguments = set(MACHINES[machine][1:])
    for number in set(range(FIRST_UNKNOWN)) - refused - by_arguments:
        assert verdict(machine, number) == ALLOW
    assert {READ[machine], EXECVE[machine]}.isdisjoint(refused | by_arguments)


@each_machine
def test_a_call_younger_than_the_list_does_not_exist(machine: str) -> None:
    for number in (FIRST_UNKNOWN, 470, 0x40000000, 0x40000000 | EXECVE[machine], 0xFFFFFFFF):
        assert verdict(machine, number) == ERRNO | ENOSYS


@each_machine
def test_the_numbers_of_another_architecture_end_the_process(machine: str) -> None:
    i386, arm = 0x40000003, 0x40000028
    other = MACHINES["aarch64" if machine == "x86_64" else "x86_64"].arch
    for arch in (i386, arm, other, 0):
        assert verdict(machine, READ[machine], arch=arch) == KILL


@each_machine
def test_threads_and_processes_can_be_made_but_no_namespaces(machine: str) -> None:
    clone = MACHINES[machine].clone
    assert verdict(machine, clone, 17) == ALLOW  # fork: SIGCHLD
    assert verdict(machine, clone, 0x3D0F00) == ALLOW  # glibc's pthread_create
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert verdict(machine, clone, 17 | 1 << bit) == ERRNO | EPERM


@each_machine
def test_sockets_are_of_kinds_that_apps_use(machine: str) -> None:
    socket, pair = MACHINES[machine].socket, MACHINES[machine].socketpair
    nonblocking = 0o2004000
    for family in (2, 10):
        assert verdict(machine, socket, family, 1 | nonblocking, 0) == ALLOW
        assert verdict(machine, socket, family, 1, 6) == ALLOW
        assert verdict(machine, socket, family, 2, 17) == ALLOW
        for protocol in (1, 132, 256, 262):  # ICMP, SCTP, SMC, MPTCP
            assert verdict(machine, socket, family, 1, protocol) == ERRNO | EPROTONOSUPPORT
            assert verdict(machine, socket, family, 2, protocol) == ERRNO | EPROTONOSUPPORT
        assert verdict(machine, socket, family, 3, 255) == ERRNO | EPERM  # raw
    assert verdict(machine, socket, 1, 5, 0) == ALLOW
    assert verdict(machine, socket, 16, 3, 0) == ALLOW
    assert verdict(machine, socket, 16, 3, 12) == ERRNO | EPROTONOSUPPORT  # netfilter
    for family in (0, 3, 4, 5, 9, 15, 17, 21, 29, 31, 38, 40, 44):
        assert verdict(machine, socket, family, 2, 0) == ERRNO | EAFNOSUPPORT
    assert verdict(machine, pair, 1, 1) == ALLOW
    assert verdict(machine, pair, 30, 1) == ERRNO | EAFNOSUPPORT  # TIPC


@each_machine
def test_nothing_can_be_typed_into_a_terminal(machine: str) -> None:
    ioctl = MACHINES[machine].ioctl
    assert verdict(machine, ioctl, 0, 0x5401) == ALLOW  # TCGETS
    assert verdict(machine, ioctl, 0, 0x5413) == ALLOW  # TIOCGWINSZ
    for request in (0x5412, 0x541C, 0x541D, 0x5423, 0xDEAD_0000_5412):
        assert verdict(machine, ioctl, 0, request) == ERRNO | EPERM


@each_machine
def test_a_personality_cannot_weaken_the_layout_of_memory(machine: str) -> None:
    personality = MACHINES[machine].personality
    assert verdict(machine, personality, 0xFFFFFFFF) == ALLOW
    assert verdict(machine, personality, 0) == ALLOW
    for flags in (0x0040000, 0x0100000, 0x0400000):
        assert verdict(machine, personality, flags) == ERRNO | EPERM


@each_machine
def test_nothing_can_be_put_on_top_of_a_connection(machine: str) -> None:
    option = MACHINES[machine].setsockopt
    assert verdict(machine, option, 3, 6, 31) == ERRNO | ENOPROTOOPT
    assert verdict(machine, option, 3, 6, 1) == ALLOW  # TCP_NODELAY
    assert verdict(machine, option, 3, 1, 31) == ALLOW


@each_machine
def test_the_program_is_one_that_the_kernel_takes(machine: str) -> None:
    code = instructions(machine)
    assert len(program(machine)) == 8 * len(code) <= 8 * LONGEST_PROGRAM
    for at, step in enumerate(code):
        if step.code in (0x15, 0x35, 0x45):
            assert at + 1 + max(step.if_true, step.if_false) < len(code)


@each_machine
def test_the_numbers_are_those_of_this_systems_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no headers of the kernel are installed here")
    text = HEADERS[machine].read_text()
    listed = {
        name: int(number)
        for name, number in re.findall(r"define (?:__NR_|__NR3264_)(\w+)\s+(\d+)\b", text)
    }
    ours = numbers(machine) | dict(zip(Machine._fields[1:], MACHINES[machine][1:], strict=True))
    known = ours.keys() & listed.keys()
    assert len(known) > 50
    assert {name: ours[name] for name in known} == {name: listed[name] for name in known}
