"""System calls that no app needs and that a sandbox refuses, and why.

Numbers are of x86-64 and of aarch64 (asm/unistd_64.h and asm-generic/unistd.h of Linux); None where
the architecture has no such call. Calls that depend on their arguments stand in `seccomp.py`.
"""

from errno import ENOSYS, EPERM
from typing import NamedTuple

FIRST_UNKNOWN = 467
"""Both architectures number alike from 424 on; the last one looked at is removexattrat, 466."""


class Denied(NamedTuple):
    """One refused call. `error` is ENOSYS where programs try it and have another way."""

    name: str
    x86_64: int | None
    aarch64: int | None
    error: int
    reason: str


_OTHERS = "other processes' memory and descriptors"
_KERNEL = "runs, traces or watches what the kernel does"
_RING = "a way past this filter: the kernel makes the calls, not the process"
_KEYS = "keyrings are not part of any namespace"
_NAMESPACES = "new namespaces bring capabilities, and the kernel's code that only they reach"
_MOUNTS = "the sandbox is what is mounted"
_HANDLES = "files by number, past the folders that hide them"
_BOOT = "the machine's own kernel"
_CLOCK = "the clock is everybody's"
_MACHINE = "settings of the machine"
_ACCOUNTS = "disks and accounts of the machine"
_MEMORY = "places memory, also other processes'"
_OLD = "old, and needed by nobody"

DENIED = (
    Denied("ptrace", 101, 117, EPERM, _OTHERS),
    Denied("process_vm_readv", 310, 270, EPERM, _OTHERS),
    Denied("process_vm_writev", 311, 271, EPERM, _OTHERS),
    Denied("kcmp", 312, 272, EPERM, _OTHERS),
    Denied("pidfd_getfd", 438, 438, EPERM, _OTHERS),
    Denied("process_madvise", 440, 440, EPERM, _OTHERS),
    Denied("bpf", 321, 280, EPERM, _KERNEL),
    Denied("perf_event_open", 298, 241, EPERM, _KERNEL),
    Denied("userfaultfd", 323, 282, EPERM, "halts the kernel in the middle of a copy"),
    Denied("fanotify_init", 300, 262, EPERM, _KERNEL),
    Denied("fanotify_mark", 301, 263, EPERM, _KERNEL),
    Denied("lookup_dcookie", 212, 18, EPERM, _KERNEL),
    Denied("syslog", 103, 116, EPERM, _KERNEL),
    Denied("lsm_get_self_attr", 459, 459, EPERM, _KERNEL),
    Denied("lsm_set_self_attr", 460, 460, EPERM, _KERNEL),
    Denied("lsm_list_modules", 461, 461, EPERM, _KERNEL),
    Denied("io_uring_setup", 425, 425, ENOSYS, _RING),
    Denied("io_uring_enter", 426, 426, ENOSYS, _RING),
    Denied("io_uring_register", 427, 427, ENOSYS, _RING),
    Denied("keyctl", 250, 219, EPERM, _KEYS),
    Denied("add_key", 248, 217, EPERM, _KEYS),
    Denied("request_key", 249, 218, EPERM, _KEYS),
    Denied("unshare", 272, 97, EPERM, _NAMESPACES),
    Denied("setns", 308, 268, EPERM, _NAMESPACES),
    Denied("clone3", 435, 435, ENOSYS, "its flags are in memory; libraries go back to clone"),
    Denied("mount", 165, 40, EPERM, _MOUNTS),
    Denied("umount2", 166, 39, EPERM, _MOUNTS),
    Denied("pivot_root", 155, 41, EPERM, _MOUNTS),
    Denied("chroot", 161, 51, EPERM, _MOUNTS),
    Denied("open_tree", 428, 428, EPERM, _MOUNTS),
    Denied("move_mount", 429, 429, EPERM, _MOUNTS),
    Denied("fsopen", 430, 430, EPERM, _MOUNTS),
    Denied("fsconfig", 431, 431, EPERM, _MOUNTS),
    Denied("fsmount", 432, 432, EPERM, _MOUNTS),
    Denied("fspick", 433, 433, EPERM, _MOUNTS),
    Denied("mount_setattr", 442, 442, EPERM, _MOUNTS),
    Denied("statmount", 457, 457, EPERM, _MOUNTS),
    Denied("listmount", 458, 458, EPERM, _MOUNTS),
    Denied("name_to_handle_at", 303, 264, EPERM, _HANDLES),
    Denied("open_by_handle_at", 304, 265, EPERM, _HANDLES),
    Denied("kexec_load", 246, 104, EPERM, _BOOT),
    Denied("kexec_file_load", 320, 294, EPERM, _BOOT),
    Denied("reboot", 169, 142, EPERM, _BOOT),
    Denied("init_module", 175, 105, EPERM, _BOOT),
    Denied("finit_module", 313, 273, EPERM, _BOOT),
    Denied("delete_module", 176, 106, EPERM, _BOOT),
    Denied("create_module", 174, None, EPERM, _BOOT),
    Denied("get_kernel_syms", 177, None, EPERM, _BOOT),
    Denied("query_module", 178, None, EPERM, _BOOT),
    Denied("clock_settime", 227, 112, EPERM, _CLOCK),
    Denied("settimeofday", 164, 170, EPERM, _CLOCK),
    Denied("adjtimex", 159, 171, EPERM, _CLOCK),
    Denied("clock_adjtime", 305, 266, EPERM, _CLOCK),
    Denied("sethostname", 170, 161, EPERM, _MACHINE),
    Denied("setdomainname", 171, 162, EPERM, _MACHINE),
    Denied("iopl", 172, None, EPERM, _MACHINE),
    Denied("ioperm", 173, None, EPERM, _MACHINE),
    Denied("vhangup", 153, 58, EPERM, _MACHINE),
    Denied("quotactl", 179, 60, EPERM, _ACCOUNTS),
    Denied("quotactl_fd", 443, 443, EPERM, _ACCOUNTS),
    Denied("swapon", 167, 224, EPERM, _ACCOUNTS),
    Denied("swapoff", 168, 225, EPERM, _ACCOUNTS),
    Denied("acct", 163, 89, EPERM, _ACCOUNTS),
    Denied("nfsservctl", 180, 42, EPERM, _ACCOUNTS),
    Denied("mbind", 237, 235, EPERM, _MEMORY),
    Denied("set_mempolicy", 238, 237, EPERM, _MEMORY),
    Denied("get_mempolicy", 239, 236, EPERM, _MEMORY),
    Denied("set_mempolicy_home_node", 450, 450, EPERM, _MEMORY),
    Denied("migrate_pages", 256, 238, EPERM, _MEMORY),
    Denied("move_pages", 279, 239, EPERM, _MEMORY),
    Denied("memfd_secret", 447, 447, ENOSYS, "memory that nothing else can see or reclaim"),
    Denied("modify_ldt", 154, None, EPERM, _OLD),
    Denied("uselib", 134, None, EPERM, _OLD),
    Denied("ustat", 136, None, EPERM, _OLD),
    Denied("sysfs", 139, None, EPERM, _OLD),
    Denied("_sysctl", 156, None, EPERM, _OLD),
)
