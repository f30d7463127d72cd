"""Test suites that others wrote give the same in a job that is run, and that is killed and woken on its way.

CPython's own tests and stress-ng, from Debian's packages. What no package has, where a variable names the directory in
which it was built: $LTP_ROOT (the Linux Test Project), $PJDFSTEST_ROOT, $SELFTESTS_ROOT (the kernel's
tools/testing/selftests) and $BUSYBOX_ROOT. What an undisturbed twin does not pass the same way twice is no difference.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.life.twins import Outcomes, differences, live
from tests.users import User

pytestmark = [pytest.mark.soak, pytest.mark.alone]
SYSTEM_PYTHON = "/usr/bin/python3"
LIBRARY = next(Path("/usr/lib").glob("python3.*/test/"), Path("/nowhere"))
"""Where CPython's own tests lie."""
BETWEEN = 10.0
"""Seconds that a job lives undisturbed between two wakes, at least."""
MOST = 8
"""Wakes."""
LONGEST = 250.0
"""Seconds that a part of a suite takes at most, undisturbed and by itself."""

CPYTHON = [
    "test_fcntl test_pty test_resource test_poll test_epoll test_popen test_wait3 test_wait4 test_openpty test_ioctl "
    "test_tempfile test_file test_fileio test_mmap test_select test_fork1",
    "test_os test_posix",
    "test_subprocess",
    "test_signal",
    "test_socket",
    "test_selectors test_socketserver test_asyncore test_ftplib test_smtplib test_timeout",
    "test_threading test_thread test_threading_local test_queue test_sched test_threadsignals",
    "test_asyncio",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_spawn",
    "test_concurrent_futures",
    "test_pathlib test_shutil test_glob test_stat test_posixpath test_largefile test_fileinput test_filecmp",
    "test_sqlite3 test_ssl test_dbm_gnu",
    "test_eintr test_time test_faulthandler",
    "test_httpservers test_httplib test_urllib2_localnet test_xmlrpc test_wsgiref test_logging",
    "test_io test_memoryview test_buffer test_ctypes test_gc test_weakref",
    "test_zlib test_bz2 test_lzma test_gzip test_tarfile test_zipfile test_mailbox",
    "test_tracemalloc test_sys test_cmd_line test_atexit test_runpy test_import test_importlib",
    "test_random test_statistics test_hashlib test_array test_pickle test_decimal",
]
"""Files that ask the system for most, together with what is like them."""
NO_TESTS = {"test_difflib_expect", "test_doctest3", "test_doctest4"}
"""What others of the files use."""
SLICE = 20
"""Of the other files."""


def _others() -> list[str]:
    """The other files of the suite, in slices: all that `python3 -m test` would run."""
    left = sorted({path.stem for path in LIBRARY.glob("test_*")} - {*" ".join(CPYTHON).split(), *NO_TESTS})
    return [" ".join(left[start : start + SLICE]) for start in range(0, len(left), SLICE)]


IN_A_CAPSULE = {
    # An id that no user of the namespace has: EINVAL where the host says EPERM.
    "test.test_subprocess.POSIXProcessTestCase.test_user",
    "test.test_subprocess.POSIXProcessTestCase.test_group",
}
"""What differs in a capsule, as docs/woken.md has it."""

STRESSORS = [
    "fork vfork clone wait zombie daemon kill pidfd",
    "exec spawn sigchld sigq sigrt sigpending sigsuspend sigabrt",
    "signal sigfpe sigsegv sigio sigpipe sigtrap sigfd signest",
    "alarm itimer timer timerfd clock nanosleep hrtimers sleep",
    "pipe fifo splice tee vm-splice sendfile zero null",
    "sock sockpair sockfd sockdiag udp poll epoll eventfd",
    "msg sem sem-sysv shm futex mutex",
    "mmap mmapmany mmapfixed mremap munmap mprotect madvise mincore",
    "malloc memfd seal mlock msync remap vm vm-rw",
    "mmapfork mmapaddr bad-altstack stack brk vm-addr vm-segv misaligned",
    "access chdir chmod dentry dir dirdeep dirmany getdent",
    "dup fallocate fcntl file-ioctl filename fpunch fstat open",
    "flock lockf lockofd locka lease link symlink rename",
    "inotify dnotify io hdd iomix seek sync-file touch",
    "truncate utime copy-file aio readahead fiemap xattr chattr",
    "env get getrandom procfs sysinfo rlimit set session",
    "nice schedpolicy affinity personality prctl yield switch resched",
    "pthread membarrier rseq vdso regs usersyscall context longjmp",
    "cpu fp vecmath matrix memcpy str wcs atomic",
    "qsort bsearch hsearch tsearch tree crypt zlib hash",
    "pty key kcmp urandom nop tsc rdrand prefetch",
]
"""What stress-ng can do to a system without harm to its other users: what is alike together, one beside the other. Not
what cannot be kept, such as shm-sysv, which locks its segments in memory. Not mq, which receives until a time of day
a second behind its end: a job that is away for longer has missed it (docs/woken.md)."""

EACH = 'for program in "$@"; do "$program" >/dev/null 2>&1 </dev/null; echo "${program##*/}\t$?" >>outcomes; done'
SELFTESTS = r"""for program in "$@"; do
    name=${program##*/}; cd "${program%/*}"
    timeout 30 "$program" 2>/dev/null </dev/null >"$OLDPWD/out"; status=$?
    cd "$OLDPWD"
    echo "$name\t$status" >>outcomes
    sed -nE "s,^(not ok|ok) ([0-9]+).*,$name \2\t\1,p" out >>outcomes
done"""
STRESS = r"""for name in "$@"; do
    mkdir $name
    {
        stress-ng --$name 1 --verify --timeout 20 --temp-path $name --quiet >$name/said 2>&1
        echo "$name\t$?\t"$(head -c 300 $name/said) >>outcomes
    } &
done; wait"""
BUSYBOX = r"""mkdir built; for name in busybox .config scripts testsuite; do cp -r "$1/$name" built; done
cd built/testsuite; sh ./runtest 2>&1 </dev/null |
    sed -nE 's,^(PASS|FAIL|SKIPPED|UNTESTED): (.*),\2\t\1,p' >../../outcomes"""
TAP = r"""for test in "$@"; do
    sh "$test" 2>/dev/null </dev/null | sed -nE "s,^(not ok|ok) ([0-9]+).*,${test##*/} \2\t\1,p"
done >>outcomes"""


def _read(directory: Path, output: str, status: int) -> Outcomes:
    """The outcomes that a suite has noted, a line for each, and its end."""
    del output
    found: Outcomes = {"the end": str(status)}
    # A name may hold what else Python takes for the end of a line.
    for line in (directory / "outcomes").read_bytes().decode(errors="replace").removesuffix("\n").split("\n"):
        name, outcome, *_ = line.split("\t")
        found[name] = f"{found[name]}, {outcome}" if name in found else outcome
    return found


def _compare(user: User, command: Sequence[str | Path]) -> None:
    twin = live(user, command, "", LONGEST, _read)
    if not twin.ended:
        pytest.skip("it does not end undisturbed either")
    assert len(twin.outcomes) > 1, "no test ran"
    wakes = min(MOST, max(2, int(twin.seconds / BETWEEN)))
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for ways in ("run", " ".join(["run", *["native" if user.is_root else "capsule"] * wakes])):
        other = live(user, command, ways, twin.seconds, _read)
        print(
            f"{user.name}, {ways}: woken {other.woken} times, {len(twin.outcomes)} outcomes", *other.refusals, sep="\n"
        )
        assert other.woken or ways == "run", other.said
        if differences([twin], other):
            again = live(user, command, "", LONGEST, _read)
            allowed = IN_A_CAPSULE if other.woken and not user.is_root else set()
            found |= {
                (ways, name): what for name, what in differences([twin, again], other).items() if name not in allowed
            }
    assert found == {}


@pytest.mark.parametrize("files", [*CPYTHON, *_others()], ids=lambda files: files.split()[0])
def test_cpython(as_user: User, files: str) -> None:
    if not (LIBRARY / "test_os.py").exists():
        pytest.skip("needs CPython's own tests: `make soak` installs them (.ci/soak-packages)")
    runner = Path(__file__).with_name("cpython.py")
    _compare(as_user, [SYSTEM_PYTHON, "-B", runner, "outcomes", *files.split()])


@pytest.mark.parametrize("names", STRESSORS, ids=lambda names: names.split()[0])
def test_stress_ng(as_user: User, names: str) -> None:
    """It checks what the system has given it."""
    if not shutil.which("stress-ng"):
        pytest.skip("needs stress-ng: `make soak` installs it (.ci/soak-packages)")
    _compare(as_user, ["sh", "-c", STRESS, "sh", *names.split()])


def _programs(variable: str, pattern: str, wanted: Callable[[Path], bool]) -> list[Path]:
    if not (root := os.environ.get(variable)):
        pytest.skip(f"{variable} names no directory with what was built")
    return sorted(filter(wanted, Path(root).glob(pattern)))


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK) and path.suffix != ".sh"


def test_linux_test_project(as_user: User) -> None:
    """Its programs end with a status that says what passed, failed or was not for this machine."""
    found = _programs("LTP_ROOT", "testcases/bin/*", _is_program)
    _compare(as_user, ["sh", "-c", EACH, "sh", *found])


def test_pjdfstest(as_user: User) -> None:
    found = _programs("PJDFSTEST_ROOT", "tests/**/*.t", Path.is_file)
    _compare(as_user, ["sh", "-c", TAP, "sh", *found])


def test_selftests_of_the_kernel(ordinary_account: User) -> None:
    """Not as root, for whom some set the clock or suspend the machine."""
    found = _programs("SELFTESTS_ROOT", "*/*", _is_program)
    _compare(ordinary_account, ["sh", "-c", SELFTESTS, "sh", *found])


def test_busybox(as_user: User) -> None:
    (built,) = _programs("BUSYBOX_ROOT", "busybox", Path.is_file)
    _compare(as_user, ["sh", "-c", BUSYBOX, "sh", built.parent])
