"""Isolation by the kernel: a seccomp filter, Landlock, namespaces, no capabilities. Linux only.

Everything here acts on the calling process, holds for all of its threads, and cannot be taken back.

Sources: seccomp(2), landlock(7), user_namespaces(7), capabilities(7); numbers of the calls: asm/unistd_64.h (x86_64)
and asm-generic/unistd.h (aarch64).
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence

# Numbers of system calls: on x86_64, and on aarch64, which lacks some. From 424 on, all machines have the same.
_X86_64 = {
    "open": 2, "ioctl": 16, "shmget": 29, "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50,
    "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64, "msgget": 68,
    "fcntl": 72, "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101,
    "rt_sigqueueinfo": 129, "utime": 132, "mknod": 133, "setpriority": 141, "sched_setparam": 142,
    "sched_setscheduler": 144, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "tkill": 200,
    "sched_setaffinity": 203, "tgkill": 234, "utimes": 235, "mq_open": 240, "add_key": 248, "request_key": 249,
    "keyctl": 250, "ioprio_set": 251, "migrate_pages": 256, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "fchownat": 260, "futimesat": 261, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "fchmodat": 268, "unshare": 272, "move_pages": 279, "utimensat": 280, "accept4": 288, "rt_tgsigqueueinfo": 297,
    "perf_event_open": 298, "prlimit64": 302, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "sched_setattr": 314, "renameat2": 316, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "fcntl": 25, "ioctl": 29, "ioprio_set": 30, "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36,
    "linkat": 37, "renameat": 38, "umount2": 39, "mount": 40, "pivot_root": 41, "truncate": 45, "chroot": 51,
    "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "openat": 56, "utimensat": 88, "unshare": 97,
    "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "kill": 129,
    "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140, "mq_open": 180, "msgget": 186,
    "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202,
    "connect": 203, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221,
    "migrate_pages": 238, "move_pages": 239, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "accept4": 242,
    "prlimit64": 261, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "sched_setattr": 274, "renameat2": 276, "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
}  # fmt: skip
_ALIKE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
    "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "landlock_create_ruleset": 444,
    "landlock_add_rule": 445, "landlock_restrict_self": 446, "memfd_secret": 447, "process_mrelease": 448,
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

# What no solution of a contest needs. Another process or program to run, and files to make one of:
_DENIED = "fork vfork execve execveat memfd_create memfd_secret "
# Signals to others, and other ways into their memory or onto their processors.
_DENIED += "tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd ptrace process_vm_readv "
_DENIED += "process_vm_writev process_madvise process_mrelease kcmp setpriority sched_setaffinity sched_setscheduler "
_DENIED += "sched_setparam sched_setattr ioprio_set migrate_pages move_pages "
# The network, and sockets that lie in the file system, such as Ray's; memory and queues that all processes share.
_DENIED += "socket socketpair connect bind listen accept accept4 shmget semget msgget mq_open "
# The rest of the kernel.
_DENIED += "io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd keyctl add_key request_key "
_DENIED += "unshare setns mount umount2 pivot_root chroot fsopen fsmount fsconfig fspick open_tree move_mount "
_DENIED += "mount_setattr "
# Changes of files that Landlock does not know.
_DENIED += "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr setxattrat "
_DENIED += "removexattr lremovexattr fremovexattr removexattrat utime utimes futimesat utimensat"

# Changes of files of every kind, where nothing may be written at all.
_WRITES = "creat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat mknod "
_WRITES += "mknodat truncate"
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_CLONE_THREAD = 0x10000
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

Instruction = tuple[int, int, int, int]
"""Instruction of classic BPF: code, jump if true, jump if false, operand."""


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall_number(name: str, machine: str) -> int | None:
    """Number of a system call on `x86_64` or `aarch64`; None if that machine has none of this name."""
    return _ALIKE.get(name) or _MACHINES[machine][1].get(name)


def _load(offset: int) -> Instruction:
    return (0x20, 0, 0, offset)


def _argument(index: int) -> Instruction:
    # The lower half is enough: what is compared are ints and flags. Both machines have it first.
    return _load(16 + 8 * index)


def _return(value: int) -> Instruction:
    return (0x06, 0, 0, value)


def _unless(code: int, operand: int) -> Instruction:
    """Skips the next instruction unless the comparison holds."""
    return (code, 0, 1, operand)


_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45


def filter_program(machine: str, pid: int, *, writable: bool) -> list[Instruction]:
    """The seccomp filter for the process `pid`: what is not denied is allowed; refused calls fail with EPERM.

    Args:
        machine: `x86_64` or `aarch64`.
        pid: the process itself, the only one it may send signals to.
        writable: whether files may be opened for writing; where, is Landlock's matter.
    """
    rules: list[Instruction] = [_load(4), _unless(_EQUAL, _MACHINES[machine][0]), (0x05, 0, 0, 1), _return(_KILL)]
    if machine == "x86_64":
        # The x32 interface: the same calls under other numbers.
        rules += [_load(0), _unless(_AT_LEAST, 0x40000000), _return(_EPERM)]

    def rule(name: str, *body: Instruction) -> None:
        number = syscall_number(name, machine)
        if number is not None:
            rules.extend([_load(0), (_EQUAL, 0, len(body), number), *body])

    for name in _DENIED.split() + ([] if writable else _WRITES.split()):
        rule(name, _return(_EPERM))
    # Threads only; where the flags lie in memory, the C library is told to use the older call.
    rule("clone", _argument(0), _unless(_ANY_BIT, _CLONE_THREAD), _return(_ALLOW), _return(_EPERM))
    rule("clone3", _return(_ENOSYS))
    for name in ("kill", "tgkill"):
        rule(name, _argument(0), _unless(_EQUAL, pid), _return(_ALLOW), _return(_EPERM))
    own = (_unless(_EQUAL, 0), _return(_ALLOW), _unless(_EQUAL, pid), _return(_ALLOW))
    rule("prlimit64", _argument(0), *own, _return(_EPERM))
    # F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: signals to others in a roundabout way.
    for name, commands in (("fcntl", (8, 10, 15)), ("ioctl", (0x8901, 0x8902))):
        refused = [step for command in commands for step in (_unless(_EQUAL, command), _return(_EPERM))]
        rule(name, _argument(1), *refused, _return(_ALLOW))
    if not writable:
        for name, index in (("open", 1), ("openat", 2)):
            rule(name, _argument(index), _unless(_ANY_BIT, _WRITE_FLAGS), _return(_EPERM), _return(_ALLOW))
        rule("openat2", _return(_ENOSYS))
    return [*rules, _return(_ALLOW)]


def install_filter(*, writable: bool) -> None:
    """Filter the system calls of this process from now on.

    Raises:
        OSError: this machine or kernel has no such filter.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(f"no filter of system calls for {machine}: {' and '.join(_MACHINES)} are known")
    packed = b"".join(struct.pack("HBBI", *step) for step in filter_program(machine, os.getpid(), writable=writable))
    code = ctypes.create_string_buffer(packed, len(packed))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(code)))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0), "seccomp")


def restrict_files(*, readable: Iterable[str], writable: Sequence[str]) -> bool:
    """With Landlock, leave these files and folders, and what is below them, as the only ones that can be opened.

    Args:
        readable: for reading only; those that do not exist are left out.
        writable: everything but devices, sockets, links and executables may be created there.

    Returns:
        Whether the kernel could.
    """
    create, add, restrict = (_ALIKE[f"landlock_{name}"] for name in ("create_ruleset", "add_rule", "restrict_self"))
    version = _libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    # Rights by bit; newer versions know more of them: 14 are `refer`, 15 `truncate`, 16 `ioctl` of devices.
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    read_file, read_folder = 0x4, 0x8
    # Write, remove, make folders and plain files, move between folders, truncate.
    write_folder = (0x2 | 0x10 | 0x20 | 0x80 | 0x100 | 0x2000 | 0x4000) & handled
    rules = [(path, read_file | (read_folder if os.path.isdir(path) else 0)) for path in readable]
    rules += [(path, read_file | read_folder | write_folder) for path in writable]
    rules += [("/dev/null", read_file | 0x2)]
    ruleset = _libc.syscall(create, ctypes.byref(ctypes.c_uint64(handled)), 8, 0)
    _check(ruleset, "landlock")
    for path, rights in rules:
        if os.path.exists(path):
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _check(_libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, opened), 0), f"landlock: {path}")
            os.close(opened)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.syscall(restrict, ruleset, 0), "landlock")
    os.close(ruleset)
    return True


def enter_namespaces(scratch: str, size_mb: int) -> bool:
    """Leave the machine's network and shared memory, and mount a small file system on the folder `scratch`.

    Returns:
        Whether the machine allows it. Many containers do not.
    """
    new_user, new_network, new_ipc, new_mount = 0x10000000, 0x40000000, 0x08000000, 0x00020000
    uid, gid = os.getuid(), os.getgid()
    others = new_network | new_ipc | new_mount
    # Root may do without a user namespace where those are turned off.
    if _libc.unshare(new_user | others) == 0:
        try:
            for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(line)
        except OSError:
            return False
    elif _libc.unshare(others) != 0:
        return False
    private, no_suid_dev_exec = 0x40000 | 0x4000, 0x2 | 0x4 | 0x8
    if _libc.mount(None, b"/", None, private, None) != 0:
        return False
    options = f"size={size_mb}m,nr_inodes=1024,mode=700".encode()
    return _libc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", no_suid_dev_exec, options) == 0


def drop_capabilities() -> None:
    """Give up every right beyond that of the user; root then is a user that owns root's files."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def die_with_parent(parent: int) -> None:
    """End this process when the one that started it ends."""
    pr_set_pdeathsig, sigkill = 1, 9
    _check(_libc.prctl(pr_set_pdeathsig, sigkill, 0, 0, 0), "parent-death signal")
    if os.getppid() != parent:
        os._exit(1)
