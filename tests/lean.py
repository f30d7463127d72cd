"""What CPython has only where the headers had it that it was built against."""

from __future__ import annotations

import re

MODULES = ("fcntl", "mmap", "os", "select", "signal", "socket")
NEWER = re.compile(
    r"os\.(copy_file_range|eventfd.*|getrandom|memfd_create|pidfd_open|preadv2|setns|splice|timerfd.*|unshare)"
    r"|os\.(CLONE_.*|EFD_.*|GRND_.*|MFD_.*|O_TMPFILE|PIDFD_.*|P_PIDFD|RWF_.*|SPLICE_.*|TFD_.*)"
    r"|signal\.pidfd_send_signal|select\.EPOLLEXCLUSIVE|mmap\.MADV_(COLD|FREE|PAGEOUT|POPULATE.*|WIPEONFORK|KEEPONFORK)"
    r"|fcntl\.(F_.*SEALS?|F_SEAL_.*|F_OFD_.*|F_.*PIPE_SZ|FICLONE.*)"
    r"|socket\.(AF_(?!UNIX|INET6?$|NETLINK).*|IPPROTO_(SCTP|UDPLITE|MPTCP|DCCP)|SO_INCOMING_CPU"
    r"|TCP_(FASTOPEN.*|USER_TIMEOUT|NOTSENT_LOWAT|MD5SIG|CC_INFO|ULP))"
)
"""Those of conda's and uv's Pythons are of glibc 2.17 and Linux 3.10, and few have Bluetooth's. `torpor.remote.sys` has
the calls; constants are numbers."""

LEAN = f"""
import re
from importlib import import_module
for module in map(import_module, {MODULES!r}):
    for name in dir(module):
        if re.fullmatch({NEWER.pattern!r}, f"{{module.__name__}}.{{name}}"):
            delattr(module, name)
"""
"""What makes a Python one of those."""
