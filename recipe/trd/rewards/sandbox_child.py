"""The process that `sandbox.py` starts: limits and isolates itself, reports which layers hold, and runs the code.

Run as a file by an isolated interpreter (`python -I -S`), as the main program of its process; standard library only.
"""

import os
import resource
import site
import sys
import types

STACK_BYTES = 64 << 20
"""Deep recursion is common in contests; it ends in RecursionError or, with a raised limit, here."""

_MAX_OPEN_FILES = 64

_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/urandom")


def limit_resources(memory_mb: int, cpu_s: int, file_mb: int) -> None:
    """Limits of the process: memory, processor time, size of a file, open files, stack; no core dumps."""
    limits = {
        resource.RLIMIT_AS: (memory_mb << 20, memory_mb << 20),
        # The kernel ends the process at the second one, should it outlive the signal at the first.
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_FSIZE: (file_mb << 20, file_mb << 20),
        resource.RLIMIT_NOFILE: (_MAX_OPEN_FILES, _MAX_OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_STACK: (STACK_BYTES, -1),
    }
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft, top = (value if hard == -1 else hard if value == -1 else min(value, hard) for value in wanted)
        resource.setrlimit(kind, (soft, top))


def apply_isolation(scratch: str, scratch_mb: int, layers: list[str], readable: list[str]) -> list[str]:
    """Apply every layer of isolation that the machine has.

    Args:
        scratch: the only folder in which anything may be written, if at all.
        scratch_mb: room in it.
        layers: of `namespaces` and `landlock`, those that are tried.
        readable: folders that may be read, beside Python's and the system's.

    Returns:
        The layers that hold.

    Raises:
        OSError: system calls cannot be filtered here, without which there is no sandbox.
    """
    from recipe.trd.rewards import sandbox_filter

    held = []
    if "namespaces" in layers and sandbox_filter.enter_namespaces(scratch, scratch_mb):
        held.append("namespaces")
        # The folder is another one now.
        os.chdir(scratch)
    sandbox_filter.drop_capabilities()
    readable = [sys.base_prefix, sys.base_exec_prefix, *_SYSTEM, *readable]
    # Without a file system of its own, the code could fill the machine's disk: it may write nothing then.
    writable = [scratch] if held else []
    if "landlock" in layers and sandbox_filter.restrict_files(readable=readable, writable=writable):
        held.append("landlock")
    sandbox_filter.install_filter(writable=held == ["namespaces", "landlock"])
    return [*held, "seccomp"]


def run_as_main(source: bytes, site_packages: list[str]) -> None:
    """Run the code as `__main__`, with nothing of this file in its way."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "recipe"]:
        del sys.modules[name]
    # What an interpreter without -S has: exit() and quit(), and installed packages such as numpy.
    site.setquit()
    sys.path += site_packages
    # Judges of contests run code on interpreters without this limit.
    sys.set_int_max_str_digits(0)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec"), module.__dict__)


def main(arguments: list[str]) -> None:
    """Arguments: parent, file descriptors of code and answer, three limits, three lists; see `sandbox._command`."""
    parent, source_fd, status_fd, memory_mb, cpu_s, scratch_mb = map(int, arguments[:6])
    layers, readable, site_packages = (list(filter(None, text.split(os.pathsep))) for text in arguments[6:9])
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    sys.path.insert(0, root)
    from recipe.trd.rewards import sandbox_filter

    sandbox_filter.die_with_parent(parent)
    with open(source_fd, "rb") as file:
        source = file.read()
    limit_resources(memory_mb, cpu_s, scratch_mb)
    held = apply_isolation(os.getcwd(), scratch_mb, layers, readable + site_packages)
    sys.path.remove(root)
    os.write(status_fd, " ".join(held).encode())
    os.close(status_fd)
    run_as_main(source, site_packages)


if __name__ == "__main__":
    main(sys.argv[1:])
