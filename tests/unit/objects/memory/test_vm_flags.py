"""Every VmFlag that a kernel prints is known, and the text of other kernels than this one is read as theirs."""

from __future__ import annotations

import os
import re

import pytest

from torpor import procfs
from torpor.objects.memory import process_memory, vdso, vm_flags, vmas

LETTERS = {
    "5.10": "rd wr ex sh mr mw me ms gd pf dw lo io sr rr dc de ac nr ht sf ar wf dd bt sd mm hg nh mg um uw mt",
    "6.1": "rd wr ex sh mr mw me ms gd pf lo io sr rr dc de ac nr ht sf ar wf dd bt sd mm hg nh mg um uw mt ui",
    "7.0": "rd wr ex sh mr mw me ms gd pf gu lo io sr rr dc de lf ac nr ht sf ar wf dd bt sd mm hg nh mg um uw mt ui"
    " ss sl dp",
}
"""What show_smap_vma_flags has letters for (fs/proc/task_mmu.c), by kernel."""

HEADINGS = """\
00400000-00452000 r-xp 00000000 08:02 173521                             /usr/bin/it
00651000-00652000 r--p 00051000 08:02 173521                             /usr/bin/it
00e03000-00e24000 rw-p 00000000 00:00 0                                  [heap]
7f2f3c000000-7f2f3c021000 rw-p 00000000 00:00 0
7f2f44000000-7f2f44001000 rw-s 00000000 00:01 2051                       /dev/zero (deleted)
7ffd3f1c9000-7ffd3f1ea000 rw-p 00000000 00:00 0                          [stack]
7ffd3f1f4000-7ffd3f1f8000 r--p 00000000 00:00 0                          [vvar]
7ffd3f1f8000-7ffd3f1fa000 r-xp 00000000 00:00 0                          [vdso]
""".splitlines()
FLAGS = [
    "rd ex mr mw me dw sd", "rd mr mw me dw ac sd", "rd wr mr mw me ac sd", "rd wr mr mw me nr hg sd",
    "rd wr sh mr mw me ms sd", "rd wr mr mw me gd ac sd", "rd mr pf io de dd sd", "rd ex mr mw me de sd",
]  # fmt: skip
FIELDS = """\
Size:                {size} kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   4 kB
Pss:                   4 kB
Pss_Dirty:             4 kB
Shared_Clean:          0 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
Referenced:            4 kB
Anonymous:             4 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:    0
ProtectionKey:         0
VmFlags: {flags}
"""


def smaps(*flags: str) -> list[procfs.FlaggedMapping]:
    """The mappings of a process on a kernel with soft-dirty bits, as its smaps is read."""
    text = ""
    for heading, words in zip(HEADINGS, flags, strict=False):
        start, end = (int(word, 16) for word in heading.split()[0].split("-"))
        text += heading + "\n" + FIELDS.format(size=(end - start) >> 10, flags=words)
    return procfs.parse_smaps(text.encode())


def test_a_process_of_a_stock_kernel_is_kept() -> None:
    found = smaps(*FLAGS)
    assert [" ".join(map(bytes.decode, vma.flags)) for vma in found] == FLAGS
    apart = [vma for vma in found if vma.mapping.name not in vdso.NAMES]  # which is held against this kernel's
    assert vmas.unsupported("it", os.getpid(), apart) == []
    assert process_memory.unsupported("it", os.getpid(), found[:4]) == []
    assert not any(map(vmas.hides_from_fork, found))
    assert sum(map(vmas.is_special, (vma.mapping for vma in found))) == 2


@pytest.mark.parametrize("kernel", LETTERS)
def test_every_flag_of_a_kernel_is_known(kernel: str) -> None:
    printed = {letters.encode() for letters in LETTERS[kernel].split()}
    assert printed <= vm_flags.FLAGS.keys() | vm_flags.OTHER_PROCESSORS
    version = tuple(map(int, kernel.split(".")))
    here = {
        letters
        for letters, flag in vm_flags.FLAGS.items()
        if _version(flag.since, (0,)) <= version <= _version(flag.until, (99,))
    }
    assert here == printed - vm_flags.OTHER_PROCESSORS.keys()


def _version(text: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, text.split("."))) if text else otherwise


@pytest.mark.parametrize("letters", [*vm_flags.FLAGS, *vm_flags.OTHER_PROCESSORS], ids=bytes.decode)
def test_each_flag_is_kept_or_refused_by_what_it_means(letters: bytes) -> None:
    why = vm_flags.reason((b"rd", letters, b"sd"))
    flag = vm_flags.FLAGS.get(letters)
    if flag and not flag.refused:
        assert why == ""
    else:
        assert (flag.meaning if flag else vm_flags.OTHER_PROCESSORS[letters]) in why


def test_this_kernel_has_no_letters_but_those() -> None:
    for vma in procfs.flagged_mappings(os.getpid()):
        assert set(vma.flags) <= vm_flags.FLAGS.keys()


def test_a_flag_of_a_later_kernel_is_refused_by_its_letters() -> None:
    (reason,) = vmas.unsupported("it", os.getpid(), smaps("rd wr mr mw me zz"))
    assert "'zz'" in reason.why
    assert re.search("400000-0x452000 /usr/bin/it", reason.subject)


def test_an_old_kernel_has_no_letters_for_locked_on_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (b"rd", b"wr", b"lo", b"??", b"ac")
    monkeypatch.setattr(vm_flags, "_on_fault_is_nameless", lambda: True)
    assert vm_flags.is_locked_on_fault(flags)
    assert vm_flags.reason(flags) == ""
    assert "no letters" in vm_flags.reason((b"rd", b"wr", b"??"))
    monkeypatch.setattr(vm_flags, "_on_fault_is_nameless", lambda: False)
    assert not vm_flags.is_locked_on_fault(flags)
    assert "no letters" in vm_flags.reason(flags)
    assert vm_flags.is_locked_on_fault((b"lo", b"lf"))


def test_memory_above_47_bits_is_refused() -> None:
    (vma,) = smaps("rd wr mr mw me")
    high = vma._replace(mapping=vma.mapping._replace(start=1 << 47, end=(1 << 47) + 4096))
    (reason,) = vmas.unsupported("it", os.getpid(), [high])
    assert "47 bits" in reason.why
