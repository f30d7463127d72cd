"""What the kernel's headers let a program ask for, and what becomes of the state that it sets.

For each kind of request: under `rows`, by how the row of docs/objects.md begins, the names that set a state which
lasts; under `nothing`, by the reason, those that set none which is a process's or a description's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Requests:
    """The requests of some headers."""

    headers: tuple[str, ...]
    """Below /usr/include or its directory for this processor."""
    pattern: str
    """Of a line that defines one; the group is its name."""
    rows: dict[str, str]
    nothing: dict[str, str]


_READ = "it only tells something"
_DONE = "it is done at once, and leaves nothing but what it was done to: a file, a queue, memory, another process"
_HOST = "it changes the host, not the process"
_DEVICE = "of devices of the host, or kinds of sockets, that are refused"
_NOT_HERE = "Linux on this processor has it no more, or never had it"

_TERMINAL = "Pseudo terminals"
_CONTROL = "Controlling terminals"
_OPTIONS = "Options of sockets"
_LOST_OPTIONS = "Options of sockets: TCP_MAXSEG"
_OWNERS = "Signals of a descriptor that is ready"
_FILES = "Files: position"
_NAMELESS = "Attributes of files without a name"

SYSTEM_CALLS = Requests(
    ("asm/unistd_64.h",),
    r"^#define __NR_(\w+)\s+\d",
    {
        "PID, parent, process group": "clone clone3 fork setpgid setsid",
        "Program, arguments": "execve execveat",
        "Segments of its own": "modify_ldt",
        "Rights to I/O ports": "ioperm iopl",
        "Current directory": "chdir fchdir umask",
        "Root directory": "chroot",
        "Namespaces other": "unshare setns pivot_root mount umount2 move_mount mount_setattr open_tree_attr sethostname"
        " setdomainname",
        "Core dump filter": "setrlimit prlimit64",
        "Registrations for memory barriers": "membarrier",
        "Permission to use AMX": "arch_prctl",
        "User and group ids": "setuid setgid setreuid setregid setgroups setresuid setresgid setfsuid setfsgid",
        "Capabilities, securebits": "capset",
        "Processes that share": "vfork",
        "Traced by another": "ptrace",
        "Landlock domain": "landlock_restrict_self",
        "TLS, robust list": "set_tid_address set_robust_list rseq",
        "Name, parent-death": "prctl",
        "Nice value, `SCHED_BATCH`": "setpriority sched_setscheduler",
        "`SCHED_FIFO`": "sched_setparam",
        "Utilization clamps": "sched_setattr",
        "Affinity": "sched_setaffinity",
        "I/O priority": "ioprio_set",
        "Memory policy": "set_mempolicy",
        "Personality": "personality",
        "seccomp filters of its own": "seccomp",
        "Private anonymous memory": "mmap mprotect munmap brk",
        "Memory that was moved": "mremap",
        "Private mappings of files, written": "remap_file_pages",
        "madvise:": "madvise process_madvise",
        "mlock `lo`": "mlock mlock2 munlock mlockall munlockall",
        "Protection keys": "pkey_alloc pkey_free pkey_mprotect",
        "Sealed by mseal": "mseal",
        "Secret memory": "memfd_secret",
        "Shadow stack (CET)": "map_shadow_stack",
        "Policies of single mappings": "mbind set_mempolicy_home_node",
        "System V shared memory that is attached": "shmget shmat shmctl shmdt",
        "System V semaphores, with": "semget semop semctl semtimedop",
        "System V message queues": "msgget msgsnd msgrcv msgctl",
        "POSIX message queues (": "mq_open mq_unlink mq_getsetattr",
        "POSIX message queues with": "mq_timedsend mq_timedreceive mq_notify",
        "Asynchronous I/O contexts": "io_setup io_destroy io_submit io_cancel",
        "Actions, masks": "rt_sigaction rt_sigprocmask sigaltstack",
        "Queued signals": "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal",
        "Handlers that run": "rt_sigreturn",
        "Interval timers": "setitimer alarm timer_create timer_settime timer_delete",
        "Interrupted system calls": "nanosleep clock_nanosleep restart_syscall pause rt_sigsuspend rt_sigtimedwait"
        " select"
        " pselect6 poll ppoll epoll_wait epoll_pwait epoll_pwait2 futex futex_wait futex_waitv wait4 waitid"
        " io_getevents"
        " io_pgetevents",
        _FILES: "open creat openat openat2 lseek read write readv writev getdents getdents64 fcntl ioctl dup dup2 dup3"
        " close close_range open_by_handle_at sendfile splice",
        "Hints on how a file is read": "fadvise64 readahead",
        _NAMELESS: "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat"
        " file_setattr",
        "Locks:": "flock",
        "Files in memory": "memfd_create",
        "Pipes with content": "pipe pipe2 tee vmsplice",
        "FIFOs with content": "mknod mknodat",
        "eventfd": "eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime",
        "pidfd": "pidfd_open",
        "inotify": "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
        "epoll": "epoll_create epoll_create1 epoll_ctl",
        "Unix sockets:": "socketpair",
        "Descriptors in flight": "sendmsg recvmsg sendmmsg recvmmsg pidfd_getfd",
        "TCP listeners": "socket bind connect listen accept accept4 shutdown sendto recvfrom",
        _OPTIONS: "setsockopt",
        "io_uring": "io_uring_setup io_uring_enter io_uring_register",
        "userfaultfd": "userfaultfd",
        "perf": "perf_event_open",
        "fanotify": "fanotify_init fanotify_mark bpf landlock_create_ruleset landlock_add_rule",
        "Detached mounts": "open_tree fsopen fsconfig fsmount fspick",
        "Keyrings of a session": "add_key request_key keyctl",
        "Labels of security modules": "lsm_set_self_attr",
    },
    {
        _READ: "stat fstat lstat access mincore getitimer getpid uname getcwd readlink gettimeofday getrlimit getrusage"
        " sysinfo times getuid syslog getgid geteuid getegid getppid getpgrp getgroups getresuid getresgid getpgid"
        " getsid"
        " capget rt_sigpending ustat statfs fstatfs sysfs getpriority sched_getparam sched_getscheduler"
        " sched_get_priority_max sched_get_priority_min sched_rr_get_interval gettid getxattr lgetxattr fgetxattr"
        " listxattr llistxattr flistxattr getxattrat listxattrat time sched_getaffinity timer_gettime timer_getoverrun"
        " ioprio_get"
        " clock_gettime clock_getres get_mempolicy newfstatat readlinkat faccessat faccessat2 get_robust_list"
        " timerfd_gettime name_to_handle_at getcpu kcmp sched_getattr getrandom statx process_vm_readv getsockname"
        " getpeername getsockopt pread64 preadv preadv2 cachestat statmount listmount lsm_get_self_attr"
        " lsm_list_modules file_getattr listns",
        _DONE: "pwrite64 pwritev pwritev2 sched_yield msync exit exit_group fsync fdatasync truncate ftruncate rename"
        " mkdir"
        " rmdir link unlink symlink chmod fchmod chown fchown lchown utime utimes futimesat utimensat mkdirat fchownat"
        " unlinkat renameat renameat2 linkat symlinkat fchmodat fchmodat2 sync syncfs sync_file_range fallocate"
        " copy_file_range process_vm_writev process_mrelease migrate_pages move_pages futex_wake futex_requeue vhangup"
        " uretprobe uprobe",
        _HOST: "adjtimex clock_adjtime settimeofday clock_settime acct swapon swapoff reboot init_module finit_module"
        " delete_module quotactl quotactl_fd kexec_load kexec_file_load lookup_dcookie",
        _NOT_HERE: "uselib _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall"
        " tuxcall security set_thread_area get_thread_area epoll_ctl_old epoll_wait_old vserver",
    },
)

REQUESTS_OF_PROCESSORS = Requests(
    ("asm/prctl.h",),
    r"^#define (ARCH_\w+)\s+0x",
    {
        "TLS, robust list": "ARCH_SET_FS ARCH_SET_GS",
        "Time stamp counter or CPUID": "ARCH_SET_CPUID",
        "Permission to use AMX": "ARCH_REQ_XCOMP_PERM",
        "vDSO, also moved": "ARCH_MAP_VDSO_64",
        "32-bit program": "ARCH_MAP_VDSO_32 ARCH_MAP_VDSO_X32",
        "Linear address masking": "ARCH_ENABLE_TAGGED_ADDR ARCH_FORCE_TAGGED_SVA",
        "Shadow stack (CET)": "ARCH_SHSTK_ENABLE ARCH_SHSTK_DISABLE ARCH_SHSTK_LOCK ARCH_SHSTK_UNLOCK",
    },
    {
        _READ: "ARCH_GET_FS ARCH_GET_GS ARCH_GET_CPUID ARCH_GET_XCOMP_SUPP ARCH_GET_XCOMP_PERM"
        " ARCH_GET_XCOMP_GUEST_PERM ARCH_GET_UNTAG_MASK ARCH_GET_MAX_TAG_BITS ARCH_SHSTK_STATUS ARCH_SHSTK_SHSTK"
        " ARCH_SHSTK_WRSS",
        _DEVICE: "ARCH_REQ_XCOMP_GUEST_PERM",
    },
)

ADVICE = Requests(
    ("asm-generic/mman-common.h",),
    r"^#define (MADV_\w+)\s+\d",
    {
        "madvise:": "MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_DONTFORK MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE"
        " MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP MADV_DODUMP MADV_WIPEONFORK MADV_KEEPONFORK",
        "Memory that was moved": "MADV_FREE MADV_DONTNEED MADV_DONTNEED_LOCKED",
        "Guard regions": "MADV_GUARD_INSTALL MADV_GUARD_REMOVE",
    },
    {
        _DONE: "MADV_WILLNEED MADV_REMOVE MADV_COLD MADV_PAGEOUT MADV_POPULATE_READ MADV_POPULATE_WRITE MADV_COLLAPSE",
        _HOST: "MADV_HWPOISON MADV_SOFT_OFFLINE",
    },
)

IOCTLS = Requests(
    (
        "asm-generic/ioctls.h", "asm-generic/sockios.h", "linux/sockios.h", "linux/un.h", "linux/fs.h",
        "linux/eventpoll.h", "linux/inotify.h", "linux/timerfd.h", "linux/pidfd.h", "linux/nsfs.h",
    ),
    # A name, then its number, the macro that makes one, or another name
    r"^#\s*define\s+((?:TC[GSXF]|TIOC|FIO|SIO|FS_IOC|FI[A-Z]|BLK|EPIOC|INOTIFY_IOC|TFD_IOC|"
    r"PIDFD_GET_|NS_|PAGEMAP|PROCMAP)[A-Z0-9_a-z]*)(?<!TIOCSER_TEMT)[ \t]+(?:0x|_IO|FIO|SIOC|\()",
    {
        _TERMINAL: "TCSETS TCSETSW TCSETSF TCSETA TCSETAW TCSETAF TCSETS2 TCSETSW2 TCSETSF2 TCXONC TIOCEXCL TIOCNXCL"
        " TIOCSWINSZ TIOCSSOFTCAR TIOCPKT TIOCSPTLCK TIOCVHANGUP TIOCSETD TIOCGPTPEER",
        "Locked settings of terminals": "TIOCSLCKTRMIOS TIOCCONS",
        _CONTROL: "TIOCSCTTY TIOCNOTTY TIOCSPGRP",
        _FILES: "FIONBIO FIONCLEX FIOCLEX",
        _OWNERS: "FIOASYNC FIOSETOWN SIOCSPGRP",
        _NAMELESS: "FS_IOC_SETFLAGS FS_IOC32_SETFLAGS FS_IOC_FSSETXATTR",
        "epoll": "EPIOCSPARAMS",
        "inotify": "INOTIFY_IOC_SETNEXTWD",
        "eventfd": "TFD_IOC_SET_TICKS",
        "Names only": "SIOCUNIXFILE",
        # To open a namespace by another one leads to a file as of /proc/PID/ns
        "Files and directories of /proc/PID": "NS_GET_USERNS NS_GET_PARENT PIDFD_GET_CGROUP_NAMESPACE"
        " PIDFD_GET_IPC_NAMESPACE PIDFD_GET_MNT_NAMESPACE PIDFD_GET_NET_NAMESPACE PIDFD_GET_PID_NAMESPACE"
        " PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE PIDFD_GET_TIME_NAMESPACE PIDFD_GET_TIME_FOR_CHILDREN_NAMESPACE"
        " PIDFD_GET_USER_NAMESPACE PIDFD_GET_UTS_NAMESPACE NS_MNT_GET_NEXT NS_MNT_GET_PREV",
        "UDP's datagrams": "SIOCGSTAMP SIOCGSTAMPNS SIOCGSTAMP_OLD SIOCGSTAMPNS_OLD SIOCGSTAMP_NEW SIOCGSTAMPNS_NEW",
        "Watched by a userfaultfd": "PAGEMAP_SCAN",
    },
    {
        _READ: "TCGETS TCGETA TCGETS2 TIOCGPGRP TIOCOUTQ TIOCGWINSZ TIOCGSOFTCAR FIONREAD TIOCINQ TIOCGETD TIOCGSID"
        " TIOCGPTN TIOCGDEV TIOCGPKT TIOCGPTLCK TIOCGEXCL TIOCGLCKTRMIOS FIOQSIZE FIOGETOWN SIOCGPGRP SIOCATMARK"
        " SIOCINQ SIOCOUTQ SIOCOUTQNSD SIOCGSKNS FIBMAP FIGETBSZ FS_IOC_GETFLAGS FS_IOC_GETVERSION FS_IOC_FIEMAP"
        " FS_IOC32_GETFLAGS FS_IOC32_GETVERSION FS_IOC_FSGETXATTR FS_IOC_GETFSLABEL FS_IOC_GETFSUUID"
        " FS_IOC_GETFSSYSFSPATH FS_IOC_GETLBMD_CAP EPIOCGPARAMS NS_GET_NSTYPE NS_GET_OWNER_UID NS_GET_MNTNS_ID"
        " NS_GET_PID_FROM_PIDNS NS_GET_TGID_FROM_PIDNS NS_GET_PID_IN_PIDNS NS_GET_TGID_IN_PIDNS NS_MNT_GET_INFO"
        " NS_GET_ID PROCMAP_QUERY PIDFD_GET_INFO",
        _DONE: "TCSBRK TCSBRKP TCFLSH TIOCSTI TIOCSIG FICLONE FICLONERANGE FIDEDUPERANGE FS_IOC_SETVERSION"
        " FS_IOC32_SETVERSION",
        _HOST: "FIFREEZE FITHAW FITRIM FS_IOC_SETFSLABEL FS_IOC_SHUTDOWN SIOCADDRT SIOCDELRT SIOCRTMSG SIOCDARP"
        " SIOCGARP"
        " SIOCSARP SIOCDRARP SIOCGRARP SIOCSRARP",
        "of serial lines, which are refused, or consoles": "TIOCMGET TIOCMBIS TIOCMBIC TIOCMSET TIOCLINUX TIOCGSERIAL"
        " TIOCSSERIAL TIOCSBRK TIOCCBRK TIOCGRS485 TIOCSRS485 TCGETX TCSETX TCSETXF TCSETXW TIOCGISO7816"
        " TIOCSISO7816 TIOCSERCONFIG TIOCSERGWILD TIOCSERSWILD TIOCSERGSTRUCT TIOCSERGETLSR TIOCSERGETMULTI"
        " TIOCSERSETMULTI TIOCMIWAIT TIOCGICOUNT",
        _DEVICE: "BLK* SIOCDEVPRIVATE SIOCPROTOPRIVATE SIOCWANDEV",
        "it asks or changes a network device of the host": "SIOCG* SIOGIFINDEX SIOCSIF* SIOCADD* SIOCDEL* SIOCDIFADDR"
        " SIOCETHTOOL SIOCSMIIREG SIOCBOND* SIOCBR* SIOCSHWTSTAMP",
    },
)  # fmt: skip

SOCKET_OPTIONS = Requests(
    ("asm-generic/socket.h", "linux/in.h", "linux/in6.h", "linux/tcp.h", "linux/udp.h", "linux/mptcp.h", "linux/tls.h"),
    r"^#define\s+((?:SO|IP|MCAST|IPV6|TCP|UDP|MPTCP|TLS)_(?!PMTUDISC|DEFAULT|FL_|FLOWINFO_FLOW|FLOWINFO_PRIO|PRIORITY_|"
    r"TLV|PREFER_SRC|MSS_|REPAIR_O|MD5SIG_(?:MAX|FLAG)|RECEIVE_Z|ENCAP_|RST_|\d|CIPHER|ALERT|CONF|INFO_|"
    r"GET_RECORD|SET_RECORD|EXCLUDE\b|INCLUDE\b|AO_(?:MAX|KEYF)|NLA|PM_VER|SUBFLOW_FLAG)\w+)\s+[0-9]",
    {
        _OPTIONS: "SO_DEBUG SO_REUSEADDR SO_DONTROUTE SO_BROADCAST SO_SNDBUF SO_RCVBUF SO_SNDBUFFORCE SO_RCVBUFFORCE"
        " SO_KEEPALIVE SO_OOBINLINE SO_NO_CHECK SO_PRIORITY SO_LINGER SO_REUSEPORT SO_PASSCRED SO_RCVLOWAT"
        " SO_RCVTIMEO_OLD SO_SNDTIMEO_OLD SO_RCVTIMEO_NEW SO_SNDTIMEO_NEW SO_BINDTODEVICE SO_BINDTOIFINDEX SO_PASSSEC"
        " SO_MARK SO_RXQ_OVFL SO_WIFI_STATUS SO_NOFCS SO_SELECT_ERR_QUEUE SO_BUSY_POLL SO_MAX_PACING_RATE SO_ZEROCOPY"
        " SO_TIMESTAMP_OLD SO_TIMESTAMPNS_OLD SO_TIMESTAMPING_OLD SO_TIMESTAMP_NEW SO_TIMESTAMPNS_NEW"
        " SO_TIMESTAMPING_NEW SO_PREFER_BUSY_POLL SO_BUF_LOCK SO_RCVMARK SO_TXREHASH SO_PASSPIDFD SO_RCVPRIORITY"
        " SO_PASSRIGHTS IP_TOS IP_TTL IP_RECVOPTS IP_RETOPTS IP_PKTINFO IP_MTU_DISCOVER IP_RECVERR IP_RECVTTL"
        " IP_RECVTOS"
        " IP_FREEBIND IP_PASSSEC IP_TRANSPARENT IP_ORIGDSTADDR IP_MINTTL IP_CHECKSUM IP_BIND_ADDRESS_NO_PORT"
        " IP_RECVFRAGSIZE IP_RECVERR_RFC4884 IP_MULTICAST_IF IP_MULTICAST_TTL IP_MULTICAST_LOOP IP_MULTICAST_ALL"
        " IP_LOCAL_PORT_RANGE IPV6_2292PKTINFO IPV6_2292HOPOPTS IPV6_2292DSTOPTS IPV6_2292RTHDR IPV6_2292HOPLIMIT"
        " IPV6_FLOWINFO IPV6_UNICAST_HOPS IPV6_MULTICAST_HOPS IPV6_MULTICAST_LOOP IPV6_MTU_DISCOVER IPV6_RECVERR"
        " IPV6_V6ONLY IPV6_MULTICAST_ALL IPV6_ROUTER_ALERT_ISOLATE IPV6_RECVERR_RFC4884 IPV6_FLOWINFO_SEND"
        " IPV6_RECVPKTINFO IPV6_RECVHOPLIMIT IPV6_RECVHOPOPTS IPV6_RECVRTHDR IPV6_RECVDSTOPTS IPV6_RECVPATHMTU"
        " IPV6_DONTFRAG IPV6_RECVTCLASS IPV6_TCLASS IPV6_AUTOFLOWLABEL IPV6_ADDR_PREFERENCES IPV6_MINHOPCOUNT"
        " IPV6_ORIGDSTADDR IPV6_TRANSPARENT IPV6_RECVFRAGSIZE IPV6_FREEBIND TCP_NODELAY TCP_CORK TCP_KEEPIDLE"
        " TCP_KEEPINTVL TCP_KEEPCNT TCP_SYNCNT TCP_LINGER2 TCP_DEFER_ACCEPT TCP_CONGESTION TCP_THIN_LINEAR_TIMEOUTS"
        " TCP_USER_TIMEOUT TCP_FASTOPEN TCP_FASTOPEN_KEY TCP_NOTSENT_LOWAT TCP_SAVE_SYN TCP_FASTOPEN_NO_COOKIE TCP_INQ"
        " TCP_RTO_MAX_MS TCP_RTO_MIN_US TCP_DELACK_MAX_US UDP_CORK UDP_NO_CHECK6_TX UDP_NO_CHECK6_RX UDP_SEGMENT"
        " UDP_GRO",
        _LOST_OPTIONS: "TCP_MAXSEG TCP_WINDOW_CLAMP TCP_QUICKACK TCP_FASTOPEN_CONNECT TCP_TX_DELAY SO_TXTIME IP_OPTIONS"
        " SO_ATTACH_REUSEPORT_CBPF SO_ATTACH_REUSEPORT_EBPF SO_DETACH_REUSEPORT_BPF IP_UNICAST_IF IPV6_UNICAST_IF"
        " IPV6_MULTICAST_IF SO_INQ SO_INCOMING_CPU SO_RESERVE_MEM SO_BUSY_POLL_BUDGET TCP_MD5SIG TCP_MD5SIG_EXT"
        " TCP_AO_ADD_KEY TCP_AO_DEL_KEY TCP_AO_INFO TCP_AO_REPAIR IP_IPSEC_POLICY IP_XFRM_POLICY IPV6_IPSEC_POLICY"
        " IPV6_XFRM_POLICY IPV6_PKTINFO IPV6_MTU IPV6_FLOWLABEL_MGR IPV6_2292PKTOPTIONS IPV6_HOPOPTS"
        " IPV6_RTHDRDSTOPTS IPV6_RTHDR IPV6_DSTOPTS IPV6_JOIN_ANYCAST IPV6_LEAVE_ANYCAST",
        "Packet filters of UDP": "SO_ATTACH_FILTER SO_DETACH_FILTER SO_LOCK_FILTER",
        "Packet filters of other": "SO_ATTACH_BPF",
        "Options of sockets that are refused": "SO_PEEK_OFF UDP_ENCAP TCP_ULP TLS_TX TLS_RX TLS_TX_ZEROCOPY_RO"
        " TLS_RX_EXPECT_NO_PAD TLS_TX_MAX_PAYLOAD_LEN",
        "UDP, bound": "IP_ADD_MEMBERSHIP IP_DROP_MEMBERSHIP IP_UNBLOCK_SOURCE IP_BLOCK_SOURCE IP_ADD_SOURCE_MEMBERSHIP"
        " IP_DROP_SOURCE_MEMBERSHIP IP_MSFILTER MCAST_* IPV6_ADD_MEMBERSHIP IPV6_DROP_MEMBERSHIP IPV6_ADDRFORM",
        "TCP connections to the outside that go on": "TCP_REPAIR TCP_REPAIR_QUEUE TCP_QUEUE_SEQ TCP_REPAIR_OPTIONS"
        " TCP_REPAIR_WINDOW TCP_TIMESTAMP",
    },
    {
        _READ: "SO_TYPE SO_ERROR SO_PEERCRED SO_PEERNAME SO_ACCEPTCONN SO_PEERSEC SO_PROTOCOL SO_DOMAIN"
        " SO_BPF_EXTENSIONS SO_MEMINFO SO_INCOMING_NAPI_ID SO_COOKIE SO_PEERGROUPS SO_NETNS_COOKIE SO_PEERPIDFD"
        " IP_PKTOPTIONS IP_MTU IP_PROTOCOL IPV6_PATHMTU TCP_INFO TCP_CC_INFO TCP_SAVED_SYN TCP_IS_MPTCP"
        " TCP_AO_GET_KEYS MPTCP_INFO MPTCP_TCPINFO MPTCP_SUBFLOW_ADDRS MPTCP_FULL_INFO",
        "it goes with one message": "IPV6_HOPLIMIT SO_DEVMEM_LINEAR SO_DEVMEM_DMABUF SO_DEVMEM_DONTNEED",
        _DONE: "SO_CNX_ADVICE TCP_ZEROCOPY_RECEIVE",
        _NOT_HERE: "SO_BSDCOMPAT SO_SNDLOWAT SO_SECURITY_AUTHENTICATION SO_SECURITY_ENCRYPTION_TRANSPORT"
        " SO_SECURITY_ENCRYPTION_NETWORK IPV6_NEXTHOP IPV6_AUTHHDR IPV6_USE_MIN_MTU TCP_THIN_DUPACK",
        _DEVICE: "IP_HDRINCL IP_ROUTER_ALERT IP_NODEFRAG IPV6_CHECKSUM IPV6_HDRINCL IPV6_ROUTER_ALERT",
    },
)

NETLINK_OPTIONS = Requests(
    ("linux/netlink.h",),
    r"^#define (NETLINK_(?!EXT_ACK_|CAP_NET)\w+)\s+\d",
    {
        "Netlink sockets of routes": "NETLINK_ADD_MEMBERSHIP NETLINK_DROP_MEMBERSHIP NETLINK_PKTINFO"
        " NETLINK_BROADCAST_ERROR NETLINK_NO_ENOBUFS NETLINK_LISTEN_ALL_NSID NETLINK_CAP_ACK NETLINK_EXT_ACK"
        " NETLINK_GET_STRICT_CHK",
    },
    {
        _READ: "NETLINK_LIST_MEMBERSHIPS",
        _NOT_HERE: "NETLINK_RX_RING NETLINK_TX_RING",
        "it is a protocol, no option": "NETLINK_ROUTE NETLINK_UNUSED NETLINK_USERSOCK NETLINK_FIREWALL"
        " NETLINK_SOCK_DIAG"
        " NETLINK_NFLOG NETLINK_XFRM NETLINK_SELINUX NETLINK_ISCSI NETLINK_AUDIT NETLINK_FIB_LOOKUP NETLINK_CONNECTOR"
        " NETLINK_NETFILTER NETLINK_IP6_FW NETLINK_DNRTMSG NETLINK_KOBJECT_UEVENT NETLINK_GENERIC"
        " NETLINK_SCSITRANSPORT NETLINK_ECRYPTFS NETLINK_RDMA NETLINK_CRYPTO NETLINK_SMC",
    },
)

WRITABLE: dict[str, str] = {
    "attr/* current exec prev fscreate keycreate sockcreate": "Labels of security modules",
    "autogroup": "The nice value of a session",
    "comm timerslack_ns": "Name, parent-death",
    "coredump_filter": "Core dump filter",
    "gid_map uid_map projid_map setgroups timens_offsets": "Namespaces other",
    "loginuid": "Audit's login user",
    "mem": "Private anonymous memory",
    "oom_adj oom_score_adj": "OOM score",
    "clear_refs sched make-it-fail fail-nth patch_state latency": "",
}
"""Files of /proc/PID that may be written, and the row of what is written there; none: for who looks into the kernel."""
