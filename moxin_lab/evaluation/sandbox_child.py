"""The process in which `sandbox` runs a program that a model wrote. Started as a file, with nothing
of this package; reads the order from standard input, writes one JSON line to a pipe.

The order of the steps matters: limits, capabilities, Landlock and seccomp are the kernel's and are
final; the audit hook comes last and only gives a reason in words. Landlock's rules (Linux 6.2 or
later) let files be written in the working folder alone; with an older kernel the filter refuses
every opening of a file for writing, so the program has less, never more.

Out of scope: reading files; a program that sets out to forge its own verdict (it runs in the same
interpreter as the check). Sources: landlock(7), seccomp(2), seccomp_rule_add(3), capabilities(7).
"""

import ctypes
import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

FILE_BYTES = 2**20
OPEN_FILES = 64
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 38, 9
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
FS_WRITES = {"file": 1 << 1, "truncate": 1 << 14}  # LANDLOCK_ACCESS_FS_*: what a file allows
FS_FOLDER = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
# SCMP_ACT_*, SCMP_CMP_*, and the flag of clone that makes a thread, not a process.
ALLOW, REFUSE, NOT_THERE = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NOT_EQUAL, MASKED_EQUAL, CLONE_THREAD = 1, 7, 0x00010000

# System calls that are refused. Processes, and reaching into others:
PROCESSES = """fork vfork execve execveat ptrace process_vm_readv process_vm_writev kill tkill
rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_getfd pidfd_send_signal process_madvise kcmp"""
# The network and other channels; io_uring could do all of this unseen:
CHANNELS = """socket connect bind listen accept accept4 io_uring_setup io_uring_enter
io_uring_register shmget msgget semget mq_open memfd_create memfd_secret"""
# Owners, modes and times of files, on which Landlock has no say:
ATTRIBUTES = """chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat
futimesat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr
removexattrat"""
MACHINE = """mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount
mount_setattr unshare setns bpf perf_event_open userfaultfd keyctl add_key request_key init_module
finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff settimeofday
clock_settime adjtimex clock_adjtime sethostname setdomainname iopl ioperm syslog acct quotactl
name_to_handle_at open_by_handle_at fanotify_init"""
# Without Landlock, also what creates, removes or cuts a file:
FILES = """creat openat2 mkdir mkdirat mknod mknodat unlink unlinkat rmdir rename renameat renameat2
link linkat symlink symlinkat truncate ftruncate"""


class Argument(ctypes.Structure):
    """scmp_arg_cmp"""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


class Contained(PermissionError):
    """What the program meets where the audit hook stops it."""


def main() -> None:
    """Run the program of the order that standard input holds."""
    order = json.loads(sys.stdin.buffer.read())
    report = order["report"]  # a pipe's descriptor
    folder = os.path.realpath(".")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    try:
        kernel_limits(order, folder)
    except OSError as error:
        answer(report, order["token"], "unprotected", f"{error}")
        return
    reasons: list[str] = []
    sys.addaudithook(hook(reasons, folder))
    verdict, detail = "failed", ""
    try:
        exec(compile(order["program"], "program.py", "exec"), {"__name__": "__program__"})
        verdict = "passed"
    except MemoryError:
        verdict, detail = "contained", f"needs more than {order['memory']:,} bytes of memory"
    except BaseException as error:  # noqa: BLE001 - the program's own, whatever they are
        detail = f"{type(error).__name__}: {error}"
    if reasons:
        verdict, detail = "contained", reasons[0]
    answer(report, order["token"], verdict, detail)


def answer(report: int, token: str, verdict: str, detail: str) -> None:
    """One line for the parent, and the end of this process."""
    line = json.dumps({"token": token, "verdict": verdict, "detail": detail[:200]})
    os.write(report, line.encode() + b"\n")
    os._exit(0)  # without the program's own exit handlers, threads and destructors


def kernel_limits(order: dict[str, Any], folder: str) -> None:
    """What the kernel holds from here on. Raises OSError where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    limits = {
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_CPU: order["seconds"] + 1,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    # Version 3 of the header, then two sets of effective, permitted and inheritable: none.
    check(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()), "capset")
    has_landlock = landlock(libc, folder)
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))
    seccomp(write_nothing=not has_landlock)


def landlock(libc: ctypes.CDLL, folder: str) -> bool:
    """Files are changed below `folder` alone; False if this kernel's rules cannot say so."""
    if libc.syscall(CREATE_RULESET, None, 0, 1) < 3:  # version 3 can refuse truncation
        return False
    handled = ctypes.c_uint64(FS_FOLDER)
    rules = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    check(rules, "landlock_create_ruleset")
    for path, allowed in ((folder, FS_FOLDER), (os.devnull, sum(FS_WRITES.values()))):
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # struct landlock_path_beneath_attr is packed: uint64 access, int32 descriptor
        beneath = allowed.to_bytes(8, sys.byteorder) + parent.to_bytes(4, sys.byteorder)
        check(libc.syscall(ADD_RULE, rules, 1, beneath, 0), "landlock_add_rule")
        os.close(parent)
    check(libc.syscall(RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)
    return True


def seccomp(*, write_nothing: bool) -> None:
    """The filter of system calls; write_nothing: also those that change or create files."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    state = ctypes.c_void_p(library.seccomp_init(ALLOW))

    def refuse(name: str, action: int = REFUSE, *arguments: Argument) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # this architecture, or this library, does not know it
        array = (Argument * len(arguments))(*arguments)
        done = library.seccomp_rule_add_array(state, action, number, len(arguments), array)
        check(done, f"seccomp_rule_add {name}")

    for names in (PROCESSES, CHANNELS, ATTRIBUTES, MACHINE):
        for name in names.split():
            refuse(name)
    refuse("clone", REFUSE, Argument(0, MASKED_EQUAL, CLONE_THREAD, 0))
    refuse("clone3", NOT_THERE)  # its flags lie in memory; the C library falls back to clone
    refuse("tgkill", REFUSE, Argument(0, NOT_EQUAL, os.getpid(), 0))
    refuse("prlimit64", REFUSE, Argument(0, NOT_EQUAL, 0, 0))
    if write_nothing:
        for name in FILES.split():
            refuse(name)
        for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
            refuse("open", REFUSE, Argument(1, MASKED_EQUAL, flag, flag))
            refuse("openat", REFUSE, Argument(2, MASKED_EQUAL, flag, flag))
    check(library.seccomp_load(state), "seccomp_load")


def check(result: int, call: str) -> None:
    """Raises OSError for a negative result, with the call's name."""
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, f"{call}: {os.strerror(number)}")


def hook(reasons: list[str], folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that stops what the kernel would stop, and says in `reasons` what it was."""
    processes = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "pty.spawn")
    network = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo")
    changes = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1}
    changes |= {"os.chown": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.utime": 1}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def stop(reason: str) -> None:
        reasons.append(reason)
        raise Contained(reason)

    def outside(path: Any) -> bool:
        if isinstance(path, int):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real != os.devnull and os.path.commonpath([real, folder]) != folder

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in processes or event == "subprocess.Popen":
            stop(f"starts a process ({event})")
        elif event in ("os.kill", "os.killpg"):
            stop(f"sends a signal ({event})")
        elif event in network or (event == "socket.__new__" and arguments[1] != 1):  # AF_UNIX
            stop(f"opens the network ({event})")
        elif event == "open" and (arguments[2] or 0) & writing and outside(arguments[0]):
            stop(f"writes outside its folder ({os.fsdecode(arguments[0])})")
        elif event in changes:
            for path in arguments[: changes[event]]:
                if outside(path):
                    stop(f"writes outside its folder ({event} {os.fsdecode(path)})")

    return audit


if __name__ == "__main__":
    main()
