"""Attempts to get out of a sandbox, or to more of the machine than its share.

Each is a program for Python inside, behind `PRELUDE`, and what it prints when it is contained.
"""

import os
from typing import NamedTuple

from generator.sandboxes.local.seccomp import MACHINES
from generator.sandboxes.local.syscalls import DENIED

_MACHINE = os.uname().machine
NUMBERS = {
    denied.name: denied.x86_64 if _MACHINE == "x86_64" else denied.aarch64 for denied in DENIED
} | (MACHINES[_MACHINE]._asdict() if _MACHINE in MACHINES else {})

PRELUDE = f"""
import ctypes, errno, os, resource, signal, socket, sys, time
NUMBERS = {NUMBERS!r}
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    number = name if isinstance(name, int) else NUMBERS[name]
    if number is None:
        return "EPERM"
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return "DONE" if result != -1 else errno.errorcode[ctypes.get_errno()]
def calls(*names):
    print(*sorted({{call(name, 0, 0, 0, 0, 0) for name in names}}))
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "DONE"
def text(value):
    return ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value
def opened(path, flags=os.O_RDONLY):
    return attempt(lambda: os.close(os.open(path, flags)))
"""


class Attempt(NamedTuple):
    """What is tried, how, and the output of one that is contained."""

    name: str
    code: str
    contained: str


ATTEMPTS = [
    # Other processes
    Attempt("trace the agent", "print(call('ptrace', 16, 1, 0, 0))", "EPERM"),
    Attempt("trace oneself's child", "print(call('ptrace', 0, 0, 0, 0))", "EPERM"),
    Attempt(
        "read and write another's memory",
        "calls('process_vm_readv', 'process_vm_writev', 'process_madvise', 'kcmp')",
        "EPERM",
    ),
    Attempt(
        "take the agent's descriptors",
        "print(call('pidfd_getfd', os.pidfd_open(1), 3, 0))",
        "EPERM",
    ),
    Attempt(
        "inherit a descriptor of the host",
        "print(sorted(set(os.listdir('/proc/self/fd')) - {'3'}))",
        "['0', '1', '2']",
    ),
    Attempt(
        "kill or stop process 1, the parent of all",
        "for sign in set(range(1, 65)) - {32, 33}:\n    os.kill(1, sign)\nprint('sent')",
        "sent",
    ),
    Attempt(
        "signal processes of the host",
        "print({attempt(os.kill, pid, 9) for pid in range(500, 40000, 7) if pid != os.getpid()})",
        "{'ESRCH'}",
    ),
    # Mounts and namespaces
    Attempt(
        "mount something",
        "print(call('mount', text(b'tmpfs'), text(b'/tmp'), text(b'tmpfs'), 0, 0))",
        "EPERM",
    ),
    Attempt(
        "make the programs writable",
        "print(call('mount', 0, text(b'/usr'), 0, 32 | 4096, 0), opened('/usr/x', 65))",
        "EPERM EROFS",
    ),
    Attempt("unmount what hides", "print(call('umount2', text(b'/proc'), 2))", "EPERM"),
    Attempt(
        "change the root",
        "print(call('chroot', text(b'/tmp')), call('pivot_root', text(b'.'), text(b'.')))",
        "EPERM EPERM",
    ),
    Attempt(
        "mount by the newer calls",
        "calls('fsopen', 'fsconfig', 'fsmount', 'fspick', 'open_tree', 'move_mount',"
        " 'mount_setattr', 'statmount', 'listmount')",
        "EPERM",
    ),
    Attempt("unshare a user namespace", "print(call('unshare', 0x10000000))", "EPERM"),
    Attempt(
        "clone into new namespaces",
        "print({call('clone', 17 | 1 << bit, 0, 0, 0, 0) for bit in (17, 25, 26, 27, 28, 29, 30)})",
        "{'EPERM'}",
    ),
    Attempt("hide the flags of a clone in memory", "print(call('clone3', 0, 0))", "ENOSYS"),
    Attempt(
        "enter the namespaces of process 1",
        "print({call('setns', os.open(f'/proc/1/ns/{kind}', 0), 0) for kind in ('net', 'mnt')})",
        "{'EPERM'}",
    ),
    Attempt(
        "map another user",
        "print(attempt(lambda: os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1')))",
        "EPERM",
    ),
    # The kernel
    Attempt(
        "use io_uring",
        "calls('io_uring_setup', 'io_uring_enter', 'io_uring_register')",
        "ENOSYS",
    ),
    Attempt("load a BPF program", "calls('bpf')", "EPERM"),
    Attempt("watch the kernel", "calls('perf_event_open', 'fanotify_init', 'syslog')", "EPERM"),
    Attempt("halt the kernel in a copy", "calls('userfaultfd')", "EPERM"),
    Attempt("use a keyring of the host", "calls('keyctl', 'add_key', 'request_key')", "EPERM"),
    Attempt("open files by number", "calls('open_by_handle_at', 'name_to_handle_at')", "EPERM"),
    Attempt(
        "load modules and kernels, reboot",
        "calls('init_module', 'finit_module', 'delete_module', 'kexec_load', 'kexec_file_load')\n"
        "print(call('reboot', 0xfee1dead, 672274793, 0x1234567, 0))",
        "EPERM\nEPERM",
    ),
    Attempt(
        "set the clock",
        "calls('clock_settime', 'settimeofday', 'adjtimex', 'clock_adjtime')\n"
        "print(attempt(time.clock_settime, time.CLOCK_REALTIME, 0))",
        "EPERM\nEPERM",
    ),
    Attempt(
        "change accounts and swap of the machine",
        "calls('swapon', 'swapoff', 'quotactl', 'quotactl_fd', 'acct', 'vhangup')",
        "EPERM",
    ),
    Attempt(
        "rename the machine",
        "print(attempt(socket.sethostname, 'mine'), socket.gethostname())",
        "EPERM sandbox",
    ),
    Attempt("switch off the layout of memory", "print(call('personality', 0x40000))", "EPERM"),
    Attempt("call by the numbers of x32", "print(call(0x40000000 + 101, 16, 1, 0, 0))", "ENOSYS"),
    Attempt("call what is younger than the list", "calls(*range(467, 512))", "ENOSYS"),
    Attempt(
        "call by the numbers of 32 bits",
        """
import mmap
if os.uname().machine != "x86_64":
    print(-signal.SIGSYS)
    sys.exit()
# mov eax, 20 (getpid of i386); int 0x80; ret
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))
place = ctypes.addressof(ctypes.c_char.from_buffer(code))
if os.fork() == 0:
    ctypes.CFUNCTYPE(ctypes.c_int)(place)()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
""",
        "-31",
    ),
    Attempt(
        "type into a terminal",
        """
import fcntl, pty
ours, theirs = pty.openpty()
print({attempt(fcntl.ioctl, theirs, request, b"x") for request in (0x5412, 0x541C, 0x5423)})
""",
        "{'EPERM'}",
    ),
    Attempt(
        "write settings of the kernel",
        "print({opened(f'/proc/{name}', os.O_WRONLY) for name in ('sysrq-trigger',"
        " 'sys/kernel/core_pattern', 'sys/kernel/modprobe', 'sys/vm/drop_caches')} <="
        " {'EACCES', 'EROFS', 'ENOENT', 'EPERM'})",
        "True",
    ),
    Attempt(
        "read the kernel's memory",
        "print('DONE' in {opened(path) for path in ('/proc/kcore', '/proc/kmsg', '/dev/mem',"
        " '/dev/kmsg', '/dev/port', '/sys/kernel/vmcoreinfo')})",
        "False",
    ),
    # Files and devices
    Attempt(
        "make devices",
        "import stat\nprint({attempt(os.mknod, f'd{kind}', kind | 0o600, os.makedev(8, 0))"
        " for kind in (stat.S_IFBLK, stat.S_IFCHR)})",
        "{'EPERM'}",
    ),
    Attempt(
        "open disks of the host",
        "print({opened(f'/dev/{name}') for name in ('vda', 'sda', 'nvme0n1', 'fuse', 'kvm',"
        " 'net/tun', 'loop-control', 'vhost-vsock', 'uinput')})",
        "{'ENOENT'}",
    ),
    Attempt(
        "see files of the host through another's root",
        "print([p for p in ('/proc/1/root/etc/shadow', '/proc/1/cwd/../etc/shadow',"
        " '/proc/self/root/boot', '/var/run/docker.sock', '/home/user/../../sys')"
        " if os.path.exists(p)])",
        "[]",
    ),
    Attempt(
        "follow links and dots out of the project",
        "os.symlink('/../../../../etc/shadow', 'link')\n"
        "print(opened('link'), opened('../../../../../../etc/shadow'))\nos.unlink('link')",
        "ENOENT ENOENT",
    ),
    Attempt(
        "change the agent's own code",
        "print({opened(f'/run/headrace/inside/{name}', os.O_WRONLY) for name in"
        " os.listdir('/run/headrace/inside')} <= {'EROFS', 'EACCES'})",
        "True",
    ),
    Attempt(
        "become root",
        "print(attempt(os.setuid, 0), attempt(os.setgroups, [0]), attempt(os.setresgid, 0, 0, 0))",
        "EINVAL EPERM EINVAL",
    ),
    Attempt(
        "become root by a program that may",
        """
import shutil, subprocess
shutil.copy("/bin/sh", "shell")
os.chmod("shell", 0o6755)
said = subprocess.run(["./shell", "-p", "-c", "id -u"], capture_output=True, text=True).stdout
print(said.strip(), os.statvfs(".").f_flag & os.ST_NOSUID != 0,
      os.statvfs("/usr/bin").f_flag & os.ST_NOSUID != 0)
""",
        "65534 True True",
    ),
    # The network
    Attempt(
        "open sockets past the network",
        "print({attempt(socket.socket, family, kind) for family, kind in ((17, 3), (40, 1),"
        " (38, 5), (29, 3), (44, 3), (16, 3))} - {'DONE'}, attempt(socket.socket, 2, 3, 255),"
        " attempt(socket.socket, 16, 3, 12))",
        "{'EAFNOSUPPORT'} EPERM EPROTONOSUPPORT",
    ),
    Attempt(
        "bring up another interface",
        "import fcntl, struct\n"
        "with socket.socket() as sock:\n"
        "    up = struct.pack('16sH', b'lo', 0x1041)\n"
        "    print(attempt(fcntl.ioctl, sock, 0x8914, up), socket.if_nameindex())",
        "EPERM [(1, 'lo')]",
    ),
    Attempt(
        "ask a name server",
        "print(attempt(socket.create_connection, ('1.1.1.1', 53), 2))",
        "ENETUNREACH",
    ),
    # More than its share
    Attempt(
        "raise its own limits",
        """
kinds = (resource.RLIMIT_NPROC, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
raised = []
for kind in kinds:
    _, most = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (most + 1, most + 1))
        raised.append(kind)
    except (OSError, ValueError):
        pass
print(raised, attempt(os.setpriority, os.PRIO_PROCESS, 0, -10))
""",
        "[] EACCES",
    ),
    Attempt(
        "run before all others",
        "print(attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)))",
        "EPERM",
    ),
    Attempt(
        "let another die in its place",
        "print(attempt(lambda: os.write(os.open('/proc/self/oom_score_adj', 1), b'-1000')),"
        " attempt(lambda: os.write(os.open('/proc/1/oom_score_adj', 1), b'-1000')))",
        "EACCES EACCES",
    ),
    Attempt(
        "fill the disk",
        """
def fill():
    with open("fill", "wb") as file:
        for _ in range(1000):
            file.write(bytes(1 << 20))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
print(attempt(fill) in ("ENOSPC", "EFBIG"))
os.unlink("fill")
""",
        "True",
    ),
    Attempt(
        "pretend a file of a terabyte",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
print(attempt(lambda: os.ftruncate(os.open("sparse", 65), 1 << 40)))
os.unlink("sparse")
""",
        "EFBIG",
    ),
    Attempt(
        "use up the inodes",
        """
made = 0
os.mkdir("many")
try:
    for made in range(100_000):
        os.close(os.open(f"many/{made}", 65))
except OSError as error:
    print(made < 2000, errno.errorcode[error.errno])
import shutil
shutil.rmtree("many")
""",
        "True ENOSPC",
    ),
    Attempt(
        "use up descriptors and pipes",
        """
def pipes():
    while True:
        os.pipe()
print(attempt(pipes))
""",
        "EMFILE",
    ),
    Attempt(
        "use up threads",
        """
import threading
made = 0
try:
    while made < 1000:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        made += 1
except RuntimeError:
    pass
print(0 < made < 60, flush=True)
os._exit(0)
""",
        "True",
    ),
    Attempt(
        "leave zombies to nobody",
        """
for _ in range(100):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
# Process 1 reaps what is left, and each of its children is no zombie in the end.
give_up = time.monotonic() + 10
def zombies():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if ") Z " in open(f"/proc/{pid}/stat").read():
                return True
        except OSError:
            pass
while zombies() and time.monotonic() < give_up:
    pass
print(zombies())
""",
        "None",
    ),
    Attempt(
        "use memory that counts for nobody",
        "import mmap\nprint(attempt(mmap.mmap, -1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),"
        " call('memfd_secret', 0))",
        "ENOMEM ENOSYS",
    ),
    Attempt(
        "fill shared memory",
        """
def fill():
    with open("/dev/shm/fill", "wb") as file:
        while True:
            file.write(bytes(1 << 18))
print(attempt(fill))
os.unlink("/dev/shm/fill")
""",
        "ENOSPC",
    ),
]
