from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tree(_message.Message):
    __slots__ = ("host", "processes", "descriptions", "shared", "files", "pipes", "timing", "ptys", "sessions", "semaphores", "queues", "mounts", "bundles", "filters", "keyrings", "folders", "own_ipc_namespace", "fifos")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PIPES_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    PTYS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SEMAPHORES_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    KEYRINGS_FIELD_NUMBER: _ClassVar[int]
    FOLDERS_FIELD_NUMBER: _ClassVar[int]
    OWN_IPC_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FIFOS_FIELD_NUMBER: _ClassVar[int]
    host: Host
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    descriptions: _containers.RepeatedCompositeFieldContainer[Description]
    shared: _containers.RepeatedCompositeFieldContainer[SharedMemory]
    files: _containers.RepeatedCompositeFieldContainer[FileRef]
    pipes: _containers.RepeatedCompositeFieldContainer[PipeBuffer]
    timing: Timing
    ptys: _containers.RepeatedCompositeFieldContainer[Pty]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    semaphores: _containers.RepeatedCompositeFieldContainer[SemaphoreSet]
    queues: _containers.RepeatedCompositeFieldContainer[MessageQueue]
    mounts: _containers.RepeatedCompositeFieldContainer[Mount]
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    keyrings: _containers.RepeatedCompositeFieldContainer[Keyring]
    folders: _containers.RepeatedCompositeFieldContainer[Place]
    own_ipc_namespace: bool
    fifos: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, host: _Optional[_Union[Host, _Mapping]] = ..., processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ..., descriptions: _Optional[_Iterable[_Union[Description, _Mapping]]] = ..., shared: _Optional[_Iterable[_Union[SharedMemory, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[FileRef, _Mapping]]] = ..., pipes: _Optional[_Iterable[_Union[PipeBuffer, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., ptys: _Optional[_Iterable[_Union[Pty, _Mapping]]] = ..., sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., semaphores: _Optional[_Iterable[_Union[SemaphoreSet, _Mapping]]] = ..., queues: _Optional[_Iterable[_Union[MessageQueue, _Mapping]]] = ..., mounts: _Optional[_Iterable[_Union[Mount, _Mapping]]] = ..., bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., keyrings: _Optional[_Iterable[_Union[Keyring, _Mapping]]] = ..., folders: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., own_ipc_namespace: bool = ..., fifos: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class Keyring(_message.Message):
    __slots__ = ("serial", "name", "uid", "gid", "rights", "keys", "users")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    serial: int
    name: bytes
    uid: int
    gid: int
    rights: int
    keys: _containers.RepeatedCompositeFieldContainer[SecretKey]
    users: bool
    def __init__(self, serial: _Optional[int] = ..., name: _Optional[bytes] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., rights: _Optional[int] = ..., keys: _Optional[_Iterable[_Union[SecretKey, _Mapping]]] = ..., users: bool = ...) -> None: ...

class SecretKey(_message.Message):
    __slots__ = ("type", "description", "payload", "uid", "gid", "rights", "seconds")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    type: bytes
    description: bytes
    payload: bytes
    uid: int
    gid: int
    rights: int
    seconds: int
    def __init__(self, type: _Optional[bytes] = ..., description: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., rights: _Optional[int] = ..., seconds: _Optional[int] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("code", "flags")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    code: bytes
    flags: int
    def __init__(self, code: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("path", "size", "mode", "mtime_ns", "pages", "uid", "gid", "attributes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    size: int
    mode: int
    mtime_ns: int
    pages: PageTable
    uid: int
    gid: int
    attributes: _containers.RepeatedCompositeFieldContainer[SharedMemory.Attribute]
    def __init__(self, path: _Optional[bytes] = ..., size: _Optional[int] = ..., mode: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., pages: _Optional[_Union[PageTable, _Mapping]] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[SharedMemory.Attribute, _Mapping]]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("path", "mode", "uid", "gid", "used", "mtime_ns", "attributes", "lacks")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    LACKS_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    mode: int
    uid: int
    gid: int
    used: bool
    mtime_ns: int
    attributes: _containers.RepeatedCompositeFieldContainer[SharedMemory.Attribute]
    lacks: bytes
    def __init__(self, path: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., used: bool = ..., mtime_ns: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[SharedMemory.Attribute, _Mapping]]] = ..., lacks: _Optional[bytes] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("digest", "whole")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    whole: bool
    def __init__(self, digest: _Optional[bytes] = ..., whole: bool = ...) -> None: ...

class Mount(_message.Message):
    __slots__ = ("path", "filesystem", "source")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    filesystem: str
    source: str
    def __init__(self, path: _Optional[bytes] = ..., filesystem: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class SemaphoreSet(_message.Message):
    __slots__ = ("id", "key", "uid", "gid", "mode", "values", "undo")
    class Undo(_message.Message):
        __slots__ = ("pid", "number", "value")
        PID_FIELD_NUMBER: _ClassVar[int]
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        pid: int
        number: int
        value: int
        def __init__(self, pid: _Optional[int] = ..., number: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    id: int
    key: int
    uid: int
    gid: int
    mode: int
    values: _containers.RepeatedScalarFieldContainer[int]
    undo: _containers.RepeatedCompositeFieldContainer[SemaphoreSet.Undo]
    def __init__(self, id: _Optional[int] = ..., key: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., mode: _Optional[int] = ..., values: _Optional[_Iterable[int]] = ..., undo: _Optional[_Iterable[_Union[SemaphoreSet.Undo, _Mapping]]] = ...) -> None: ...

class MessageQueue(_message.Message):
    __slots__ = ("id", "key", "uid", "gid", "mode", "size", "messages")
    class Message(_message.Message):
        __slots__ = ("type", "content")
        TYPE_FIELD_NUMBER: _ClassVar[int]
        CONTENT_FIELD_NUMBER: _ClassVar[int]
        type: int
        content: bytes
        def __init__(self, type: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    id: int
    key: int
    uid: int
    gid: int
    mode: int
    size: int
    messages: _containers.RepeatedCompositeFieldContainer[MessageQueue.Message]
    def __init__(self, id: _Optional[int] = ..., key: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., mode: _Optional[int] = ..., size: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[MessageQueue.Message, _Mapping]]] = ...) -> None: ...

class Pty(_message.Message):
    __slots__ = ("number", "termios", "window", "locked", "packet", "exclusive", "stopped", "ended", "hung_up", "outside", "mode", "uid", "gid", "master_exclusive")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TERMIOS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LOCKED_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    HUNG_UP_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MASTER_EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    number: int
    termios: bytes
    window: bytes
    locked: bool
    packet: bool
    exclusive: bool
    stopped: bool
    ended: bool
    hung_up: bool
    outside: bool
    mode: int
    uid: int
    gid: int
    master_exclusive: bool
    def __init__(self, number: _Optional[int] = ..., termios: _Optional[bytes] = ..., window: _Optional[bytes] = ..., locked: bool = ..., packet: bool = ..., exclusive: bool = ..., stopped: bool = ..., ended: bool = ..., hung_up: bool = ..., outside: bool = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., master_exclusive: bool = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("sid", "terminal", "foreground")
    SID_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_FIELD_NUMBER: _ClassVar[int]
    sid: int
    terminal: int
    foreground: int
    def __init__(self, sid: _Optional[int] = ..., terminal: _Optional[int] = ..., foreground: _Optional[int] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ("architecture", "kernel_release", "hostname", "boot_id", "xfeatures", "xsave_size", "cpu_flags", "page_size", "realtime_ns", "monotonic_ns", "boottime_ns", "filters", "began_ns", "label", "register_sets")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_RELEASE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    XFEATURES_FIELD_NUMBER: _ClassVar[int]
    XSAVE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CPU_FLAGS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    REALTIME_NS_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_NS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    REGISTER_SETS_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    kernel_release: str
    hostname: str
    boot_id: str
    xfeatures: int
    xsave_size: int
    cpu_flags: _containers.RepeatedScalarFieldContainer[str]
    page_size: int
    realtime_ns: int
    monotonic_ns: int
    boottime_ns: int
    filters: int
    began_ns: int
    label: str
    register_sets: _containers.RepeatedCompositeFieldContainer[RegisterSet]
    def __init__(self, architecture: _Optional[str] = ..., kernel_release: _Optional[str] = ..., hostname: _Optional[str] = ..., boot_id: _Optional[str] = ..., xfeatures: _Optional[int] = ..., xsave_size: _Optional[int] = ..., cpu_flags: _Optional[_Iterable[str]] = ..., page_size: _Optional[int] = ..., realtime_ns: _Optional[int] = ..., monotonic_ns: _Optional[int] = ..., boottime_ns: _Optional[int] = ..., filters: _Optional[int] = ..., began_ns: _Optional[int] = ..., label: _Optional[str] = ..., register_sets: _Optional[_Iterable[_Union[RegisterSet, _Mapping]]] = ...) -> None: ...

class RegisterSet(_message.Message):
    __slots__ = ("number", "offset", "size")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    number: int
    offset: int
    size: int
    def __init__(self, number: _Optional[int] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("pause_ns", "total_ns")
    PAUSE_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    pause_ns: int
    total_ns: int
    def __init__(self, pause_ns: _Optional[int] = ..., total_ns: _Optional[int] = ...) -> None: ...

class FileRef(_message.Message):
    __slots__ = ("path", "size", "mtime_ns", "build_id", "dev", "ino", "mode", "ctime_ns", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    DEV_FIELD_NUMBER: _ClassVar[int]
    INO_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    size: int
    mtime_ns: int
    build_id: bytes
    dev: int
    ino: int
    mode: int
    ctime_ns: int
    content: Content
    def __init__(self, path: _Optional[bytes] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., build_id: _Optional[bytes] = ..., dev: _Optional[int] = ..., ino: _Optional[int] = ..., mode: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., content: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "ppid", "pgid", "sid", "stopped", "threads", "memory", "credentials", "umask", "cwd", "limits", "actions", "pending", "interval_timers", "posix_timers", "fds", "child_subreaper", "dumpable", "thp_disable", "oom_score_adj", "zombie", "exit_status", "coredump_filter", "xstate_permitted", "stop_told", "thp_disable_flags", "memory_merge", "membarriers", "no_terminal", "stop_signal", "cwd_inode", "root", "root_inode", "autogroup_nice", "session_keyring", "process_keyring", "exit_signal", "shares_fds", "shares_fs", "portable")
    PID_FIELD_NUMBER: _ClassVar[int]
    PPID_FIELD_NUMBER: _ClassVar[int]
    PGID_FIELD_NUMBER: _ClassVar[int]
    SID_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_TIMERS_FIELD_NUMBER: _ClassVar[int]
    POSIX_TIMERS_FIELD_NUMBER: _ClassVar[int]
    FDS_FIELD_NUMBER: _ClassVar[int]
    CHILD_SUBREAPER_FIELD_NUMBER: _ClassVar[int]
    DUMPABLE_FIELD_NUMBER: _ClassVar[int]
    THP_DISABLE_FIELD_NUMBER: _ClassVar[int]
    OOM_SCORE_ADJ_FIELD_NUMBER: _ClassVar[int]
    ZOMBIE_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    COREDUMP_FILTER_FIELD_NUMBER: _ClassVar[int]
    XSTATE_PERMITTED_FIELD_NUMBER: _ClassVar[int]
    STOP_TOLD_FIELD_NUMBER: _ClassVar[int]
    THP_DISABLE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MERGE_FIELD_NUMBER: _ClassVar[int]
    MEMBARRIERS_FIELD_NUMBER: _ClassVar[int]
    NO_TERMINAL_FIELD_NUMBER: _ClassVar[int]
    STOP_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    CWD_INODE_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROOT_INODE_FIELD_NUMBER: _ClassVar[int]
    AUTOGROUP_NICE_FIELD_NUMBER: _ClassVar[int]
    SESSION_KEYRING_FIELD_NUMBER: _ClassVar[int]
    PROCESS_KEYRING_FIELD_NUMBER: _ClassVar[int]
    EXIT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    SHARES_FDS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FS_FIELD_NUMBER: _ClassVar[int]
    PORTABLE_FIELD_NUMBER: _ClassVar[int]
    pid: int
    ppid: int
    pgid: int
    sid: int
    stopped: bool
    threads: _containers.RepeatedCompositeFieldContainer[Thread]
    memory: AddressSpace
    credentials: Credentials
    umask: int
    cwd: bytes
    limits: _containers.RepeatedCompositeFieldContainer[Rlimit]
    actions: _containers.RepeatedCompositeFieldContainer[SigAction]
    pending: _containers.RepeatedScalarFieldContainer[bytes]
    interval_timers: _containers.RepeatedCompositeFieldContainer[IntervalTimer]
    posix_timers: _containers.RepeatedCompositeFieldContainer[PosixTimer]
    fds: _containers.RepeatedCompositeFieldContainer[Fd]
    child_subreaper: bool
    dumpable: int
    thp_disable: bool
    oom_score_adj: int
    zombie: bool
    exit_status: int
    coredump_filter: int
    xstate_permitted: int
    stop_told: bool
    thp_disable_flags: int
    memory_merge: bool
    membarriers: int
    no_terminal: bool
    stop_signal: int
    cwd_inode: Inode
    root: bytes
    root_inode: Inode
    autogroup_nice: int
    session_keyring: int
    process_keyring: int
    exit_signal: int
    shares_fds: bool
    shares_fs: bool
    portable: int
    def __init__(self, pid: _Optional[int] = ..., ppid: _Optional[int] = ..., pgid: _Optional[int] = ..., sid: _Optional[int] = ..., stopped: bool = ..., threads: _Optional[_Iterable[_Union[Thread, _Mapping]]] = ..., memory: _Optional[_Union[AddressSpace, _Mapping]] = ..., credentials: _Optional[_Union[Credentials, _Mapping]] = ..., umask: _Optional[int] = ..., cwd: _Optional[bytes] = ..., limits: _Optional[_Iterable[_Union[Rlimit, _Mapping]]] = ..., actions: _Optional[_Iterable[_Union[SigAction, _Mapping]]] = ..., pending: _Optional[_Iterable[bytes]] = ..., interval_timers: _Optional[_Iterable[_Union[IntervalTimer, _Mapping]]] = ..., posix_timers: _Optional[_Iterable[_Union[PosixTimer, _Mapping]]] = ..., fds: _Optional[_Iterable[_Union[Fd, _Mapping]]] = ..., child_subreaper: bool = ..., dumpable: _Optional[int] = ..., thp_disable: bool = ..., oom_score_adj: _Optional[int] = ..., zombie: bool = ..., exit_status: _Optional[int] = ..., coredump_filter: _Optional[int] = ..., xstate_permitted: _Optional[int] = ..., stop_told: bool = ..., thp_disable_flags: _Optional[int] = ..., memory_merge: bool = ..., membarriers: _Optional[int] = ..., no_terminal: bool = ..., stop_signal: _Optional[int] = ..., cwd_inode: _Optional[_Union[Inode, _Mapping]] = ..., root: _Optional[bytes] = ..., root_inode: _Optional[_Union[Inode, _Mapping]] = ..., autogroup_nice: _Optional[int] = ..., session_keyring: _Optional[int] = ..., process_keyring: _Optional[int] = ..., exit_signal: _Optional[int] = ..., shares_fds: bool = ..., shares_fs: bool = ..., portable: _Optional[int] = ...) -> None: ...

class Inode(_message.Message):
    __slots__ = ("dev", "ino", "mode", "uid", "gid", "removed")
    DEV_FIELD_NUMBER: _ClassVar[int]
    INO_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    dev: int
    ino: int
    mode: int
    uid: int
    gid: int
    removed: bool
    def __init__(self, dev: _Optional[int] = ..., ino: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., removed: bool = ...) -> None: ...

class Thread(_message.Message):
    __slots__ = ("tid", "name", "registers", "xstate", "sigmask", "pending", "robust_list", "robust_list_size", "clear_child_tid", "rseq", "altstack", "pdeath_signal", "no_new_privs", "nice", "affinity", "timer_slack_ns", "scheduler", "below", "below_address", "rt_priority", "io_priority", "personality", "memory_policy", "memory_nodes", "tsc_faults", "cpuid_faults", "memory_failure", "speculation", "filters", "slice_ns", "clamp_most", "clamp_least", "securebits", "moved")
    TID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGISTERS_FIELD_NUMBER: _ClassVar[int]
    XSTATE_FIELD_NUMBER: _ClassVar[int]
    SIGMASK_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    ROBUST_LIST_FIELD_NUMBER: _ClassVar[int]
    ROBUST_LIST_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLEAR_CHILD_TID_FIELD_NUMBER: _ClassVar[int]
    RSEQ_FIELD_NUMBER: _ClassVar[int]
    ALTSTACK_FIELD_NUMBER: _ClassVar[int]
    PDEATH_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    NO_NEW_PRIVS_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    AFFINITY_FIELD_NUMBER: _ClassVar[int]
    TIMER_SLACK_NS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    BELOW_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RT_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IO_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_POLICY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_NODES_FIELD_NUMBER: _ClassVar[int]
    TSC_FAULTS_FIELD_NUMBER: _ClassVar[int]
    CPUID_FAULTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FAILURE_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SLICE_NS_FIELD_NUMBER: _ClassVar[int]
    CLAMP_MOST_FIELD_NUMBER: _ClassVar[int]
    CLAMP_LEAST_FIELD_NUMBER: _ClassVar[int]
    SECUREBITS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    tid: int
    name: bytes
    registers: bytes
    xstate: bytes
    sigmask: int
    pending: _containers.RepeatedScalarFieldContainer[bytes]
    robust_list: int
    robust_list_size: int
    clear_child_tid: int
    rseq: Rseq
    altstack: AltStack
    pdeath_signal: int
    no_new_privs: bool
    nice: int
    affinity: _containers.RepeatedScalarFieldContainer[int]
    timer_slack_ns: int
    scheduler: int
    below: bytes
    below_address: int
    rt_priority: int
    io_priority: int
    personality: int
    memory_policy: int
    memory_nodes: bytes
    tsc_faults: bool
    cpuid_faults: bool
    memory_failure: int
    speculation: _containers.RepeatedCompositeFieldContainer[Speculation]
    filters: _containers.RepeatedScalarFieldContainer[int]
    slice_ns: int
    clamp_most: int
    clamp_least: int
    securebits: int
    moved: int
    def __init__(self, tid: _Optional[int] = ..., name: _Optional[bytes] = ..., registers: _Optional[bytes] = ..., xstate: _Optional[bytes] = ..., sigmask: _Optional[int] = ..., pending: _Optional[_Iterable[bytes]] = ..., robust_list: _Optional[int] = ..., robust_list_size: _Optional[int] = ..., clear_child_tid: _Optional[int] = ..., rseq: _Optional[_Union[Rseq, _Mapping]] = ..., altstack: _Optional[_Union[AltStack, _Mapping]] = ..., pdeath_signal: _Optional[int] = ..., no_new_privs: bool = ..., nice: _Optional[int] = ..., affinity: _Optional[_Iterable[int]] = ..., timer_slack_ns: _Optional[int] = ..., scheduler: _Optional[int] = ..., below: _Optional[bytes] = ..., below_address: _Optional[int] = ..., rt_priority: _Optional[int] = ..., io_priority: _Optional[int] = ..., personality: _Optional[int] = ..., memory_policy: _Optional[int] = ..., memory_nodes: _Optional[bytes] = ..., tsc_faults: bool = ..., cpuid_faults: bool = ..., memory_failure: _Optional[int] = ..., speculation: _Optional[_Iterable[_Union[Speculation, _Mapping]]] = ..., filters: _Optional[_Iterable[int]] = ..., slice_ns: _Optional[int] = ..., clamp_most: _Optional[int] = ..., clamp_least: _Optional[int] = ..., securebits: _Optional[int] = ..., moved: _Optional[int] = ...) -> None: ...

class Speculation(_message.Message):
    __slots__ = ("which", "control")
    WHICH_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    which: int
    control: int
    def __init__(self, which: _Optional[int] = ..., control: _Optional[int] = ...) -> None: ...

class Rseq(_message.Message):
    __slots__ = ("pointer", "size", "signature", "flags")
    POINTER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    pointer: int
    size: int
    signature: int
    flags: int
    def __init__(self, pointer: _Optional[int] = ..., size: _Optional[int] = ..., signature: _Optional[int] = ..., flags: _Optional[int] = ...) -> None: ...

class AltStack(_message.Message):
    __slots__ = ("sp", "flags", "size")
    SP_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    sp: int
    flags: int
    size: int
    def __init__(self, sp: _Optional[int] = ..., flags: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Credentials(_message.Message):
    __slots__ = ("uids", "gids", "groups", "cap_inheritable", "cap_permitted", "cap_effective", "cap_bounding", "cap_ambient", "securebits")
    UIDS_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    CAP_INHERITABLE_FIELD_NUMBER: _ClassVar[int]
    CAP_PERMITTED_FIELD_NUMBER: _ClassVar[int]
    CAP_EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    CAP_BOUNDING_FIELD_NUMBER: _ClassVar[int]
    CAP_AMBIENT_FIELD_NUMBER: _ClassVar[int]
    SECUREBITS_FIELD_NUMBER: _ClassVar[int]
    uids: _containers.RepeatedScalarFieldContainer[int]
    gids: _containers.RepeatedScalarFieldContainer[int]
    groups: _containers.RepeatedScalarFieldContainer[int]
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bounding: int
    cap_ambient: int
    securebits: int
    def __init__(self, uids: _Optional[_Iterable[int]] = ..., gids: _Optional[_Iterable[int]] = ..., groups: _Optional[_Iterable[int]] = ..., cap_inheritable: _Optional[int] = ..., cap_permitted: _Optional[int] = ..., cap_effective: _Optional[int] = ..., cap_bounding: _Optional[int] = ..., cap_ambient: _Optional[int] = ..., securebits: _Optional[int] = ...) -> None: ...

class Rlimit(_message.Message):
    __slots__ = ("resource", "soft", "hard")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    resource: int
    soft: int
    hard: int
    def __init__(self, resource: _Optional[int] = ..., soft: _Optional[int] = ..., hard: _Optional[int] = ...) -> None: ...

class SigAction(_message.Message):
    __slots__ = ("signal", "handler", "flags", "restorer", "mask")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    HANDLER_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    RESTORER_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    signal: int
    handler: int
    flags: int
    restorer: int
    mask: int
    def __init__(self, signal: _Optional[int] = ..., handler: _Optional[int] = ..., flags: _Optional[int] = ..., restorer: _Optional[int] = ..., mask: _Optional[int] = ...) -> None: ...

class IntervalTimer(_message.Message):
    __slots__ = ("which", "interval_us", "value_us")
    WHICH_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_US_FIELD_NUMBER: _ClassVar[int]
    VALUE_US_FIELD_NUMBER: _ClassVar[int]
    which: int
    interval_us: int
    value_us: int
    def __init__(self, which: _Optional[int] = ..., interval_us: _Optional[int] = ..., value_us: _Optional[int] = ...) -> None: ...

class PosixTimer(_message.Message):
    __slots__ = ("id", "clock", "notify", "signal", "value", "thread", "interval_ns", "value_ns", "overrun")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NOTIFY_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THREAD_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_NS_FIELD_NUMBER: _ClassVar[int]
    VALUE_NS_FIELD_NUMBER: _ClassVar[int]
    OVERRUN_FIELD_NUMBER: _ClassVar[int]
    id: int
    clock: int
    notify: int
    signal: int
    value: int
    thread: int
    interval_ns: int
    value_ns: int
    overrun: int
    def __init__(self, id: _Optional[int] = ..., clock: _Optional[int] = ..., notify: _Optional[int] = ..., signal: _Optional[int] = ..., value: _Optional[int] = ..., thread: _Optional[int] = ..., interval_ns: _Optional[int] = ..., value_ns: _Optional[int] = ..., overrun: _Optional[int] = ...) -> None: ...

class AddressSpace(_message.Message):
    __slots__ = ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv", "exe", "vmas", "pages", "vdso", "vvar", "vdso_end", "vdso_content", "guards", "lock_future", "vdso_holes")
    START_CODE_FIELD_NUMBER: _ClassVar[int]
    END_CODE_FIELD_NUMBER: _ClassVar[int]
    START_DATA_FIELD_NUMBER: _ClassVar[int]
    END_DATA_FIELD_NUMBER: _ClassVar[int]
    START_BRK_FIELD_NUMBER: _ClassVar[int]
    BRK_FIELD_NUMBER: _ClassVar[int]
    START_STACK_FIELD_NUMBER: _ClassVar[int]
    ARG_START_FIELD_NUMBER: _ClassVar[int]
    ARG_END_FIELD_NUMBER: _ClassVar[int]
    ENV_START_FIELD_NUMBER: _ClassVar[int]
    ENV_END_FIELD_NUMBER: _ClassVar[int]
    AUXV_FIELD_NUMBER: _ClassVar[int]
    EXE_FIELD_NUMBER: _ClassVar[int]
    VMAS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    VDSO_FIELD_NUMBER: _ClassVar[int]
    VVAR_FIELD_NUMBER: _ClassVar[int]
    VDSO_END_FIELD_NUMBER: _ClassVar[int]
    VDSO_CONTENT_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    LOCK_FUTURE_FIELD_NUMBER: _ClassVar[int]
    VDSO_HOLES_FIELD_NUMBER: _ClassVar[int]
    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: bytes
    exe: int
    vmas: _containers.RepeatedCompositeFieldContainer[Vma]
    pages: PageTable
    vdso: int
    vvar: int
    vdso_end: int
    vdso_content: bytes
    guards: PageRuns
    lock_future: int
    vdso_holes: PageRuns
    def __init__(self, start_code: _Optional[int] = ..., end_code: _Optional[int] = ..., start_data: _Optional[int] = ..., end_data: _Optional[int] = ..., start_brk: _Optional[int] = ..., brk: _Optional[int] = ..., start_stack: _Optional[int] = ..., arg_start: _Optional[int] = ..., arg_end: _Optional[int] = ..., env_start: _Optional[int] = ..., env_end: _Optional[int] = ..., auxv: _Optional[bytes] = ..., exe: _Optional[int] = ..., vmas: _Optional[_Iterable[_Union[Vma, _Mapping]]] = ..., pages: _Optional[_Union[PageTable, _Mapping]] = ..., vdso: _Optional[int] = ..., vvar: _Optional[int] = ..., vdso_end: _Optional[int] = ..., vdso_content: _Optional[bytes] = ..., guards: _Optional[_Union[PageRuns, _Mapping]] = ..., lock_future: _Optional[int] = ..., vdso_holes: _Optional[_Union[PageRuns, _Mapping]] = ...) -> None: ...

class Vma(_message.Message):
    __slots__ = ("start", "end", "kind", "prot", "file", "shared", "offset", "grows_down", "may_write", "advice", "noreserve", "locked", "name", "locked_on_fault", "droppable", "huge_page")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Vma.Kind]
        ANONYMOUS: _ClassVar[Vma.Kind]
        FILE_PRIVATE: _ClassVar[Vma.Kind]
        FILE_SHARED: _ClassVar[Vma.Kind]
        SHARED: _ClassVar[Vma.Kind]
        MEMORY_PRIVATE: _ClassVar[Vma.Kind]
    UNKNOWN: Vma.Kind
    ANONYMOUS: Vma.Kind
    FILE_PRIVATE: Vma.Kind
    FILE_SHARED: Vma.Kind
    SHARED: Vma.Kind
    MEMORY_PRIVATE: Vma.Kind
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    GROWS_DOWN_FIELD_NUMBER: _ClassVar[int]
    MAY_WRITE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    NORESERVE_FIELD_NUMBER: _ClassVar[int]
    LOCKED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOCKED_ON_FAULT_FIELD_NUMBER: _ClassVar[int]
    DROPPABLE_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGE_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    kind: Vma.Kind
    prot: int
    file: int
    shared: int
    offset: int
    grows_down: bool
    may_write: bool
    advice: _containers.RepeatedScalarFieldContainer[int]
    noreserve: bool
    locked: bool
    name: bytes
    locked_on_fault: bool
    droppable: bool
    huge_page: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., kind: _Optional[_Union[Vma.Kind, str]] = ..., prot: _Optional[int] = ..., file: _Optional[int] = ..., shared: _Optional[int] = ..., offset: _Optional[int] = ..., grows_down: bool = ..., may_write: bool = ..., advice: _Optional[_Iterable[int]] = ..., noreserve: bool = ..., locked: bool = ..., name: _Optional[bytes] = ..., locked_on_fault: bool = ..., droppable: bool = ..., huge_page: _Optional[int] = ...) -> None: ...

class PageRuns(_message.Message):
    __slots__ = ("starts", "counts")
    STARTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    starts: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, starts: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class PageTable(_message.Message):
    __slots__ = ("starts", "counts", "blocks", "skips")
    STARTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SKIPS_FIELD_NUMBER: _ClassVar[int]
    starts: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    skips: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, starts: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., blocks: _Optional[_Iterable[int]] = ..., skips: _Optional[_Iterable[int]] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("kind", "name", "size", "seals", "pages", "dev", "ino", "mode", "sysv_id", "sysv_key", "uid", "gid", "mtime_ns", "atime_ns", "inode_flags", "attributes")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[SharedMemory.Kind]
        ANONYMOUS: _ClassVar[SharedMemory.Kind]
        MEMFD: _ClassVar[SharedMemory.Kind]
        UNLINKED: _ClassVar[SharedMemory.Kind]
        TMPFS: _ClassVar[SharedMemory.Kind]
        SYSTEM_V: _ClassVar[SharedMemory.Kind]
    UNKNOWN: SharedMemory.Kind
    ANONYMOUS: SharedMemory.Kind
    MEMFD: SharedMemory.Kind
    UNLINKED: SharedMemory.Kind
    TMPFS: SharedMemory.Kind
    SYSTEM_V: SharedMemory.Kind
    class Attribute(_message.Message):
        __slots__ = ("name", "value")
        NAME_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        name: bytes
        value: bytes
        def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEALS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    DEV_FIELD_NUMBER: _ClassVar[int]
    INO_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SYSV_ID_FIELD_NUMBER: _ClassVar[int]
    SYSV_KEY_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    INODE_FLAGS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    kind: SharedMemory.Kind
    name: bytes
    size: int
    seals: int
    pages: PageTable
    dev: int
    ino: int
    mode: int
    sysv_id: int
    sysv_key: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    inode_flags: int
    attributes: _containers.RepeatedCompositeFieldContainer[SharedMemory.Attribute]
    def __init__(self, kind: _Optional[_Union[SharedMemory.Kind, str]] = ..., name: _Optional[bytes] = ..., size: _Optional[int] = ..., seals: _Optional[int] = ..., pages: _Optional[_Union[PageTable, _Mapping]] = ..., dev: _Optional[int] = ..., ino: _Optional[int] = ..., mode: _Optional[int] = ..., sysv_id: _Optional[int] = ..., sysv_key: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_ns: _Optional[int] = ..., inode_flags: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[SharedMemory.Attribute, _Mapping]]] = ...) -> None: ...

class PipeBuffer(_message.Message):
    __slots__ = ("capacity", "content", "runs")
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    content: bytes
    runs: _containers.RepeatedCompositeFieldContainer[PipeRun]
    def __init__(self, capacity: _Optional[int] = ..., content: _Optional[bytes] = ..., runs: _Optional[_Iterable[_Union[PipeRun, _Mapping]]] = ...) -> None: ...

class PipeRun(_message.Message):
    __slots__ = ("size", "packet")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    size: int
    packet: bool
    def __init__(self, size: _Optional[int] = ..., packet: bool = ...) -> None: ...

class Fd(_message.Message):
    __slots__ = ("fd", "description", "cloexec", "locks")
    FD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CLOEXEC_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    fd: int
    description: int
    cloexec: bool
    locks: _containers.RepeatedCompositeFieldContainer[Lock]
    def __init__(self, fd: _Optional[int] = ..., description: _Optional[int] = ..., cloexec: bool = ..., locks: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ...) -> None: ...

class Lock(_message.Message):
    __slots__ = ("kind", "exclusive", "start", "length", "signal")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Lock.Kind]
        FLOCK: _ClassVar[Lock.Kind]
        OFD: _ClassVar[Lock.Kind]
        POSIX: _ClassVar[Lock.Kind]
        LEASE: _ClassVar[Lock.Kind]
        FLOCK_BY: _ClassVar[Lock.Kind]
    UNKNOWN: Lock.Kind
    FLOCK: Lock.Kind
    OFD: Lock.Kind
    POSIX: Lock.Kind
    LEASE: Lock.Kind
    FLOCK_BY: Lock.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    kind: Lock.Kind
    exclusive: bool
    start: int
    length: int
    signal: int
    def __init__(self, kind: _Optional[_Union[Lock.Kind, str]] = ..., exclusive: bool = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., signal: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("flags", "locks", "signal_owner", "file", "directory", "device", "pipe", "eventfd", "epoll", "unix", "tcp", "memfd", "outside", "timerfd", "signalfd", "pidfd", "inotify", "udp", "fifo", "pty", "queue", "proc", "name", "netlink")
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_OWNER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PIPE_FIELD_NUMBER: _ClassVar[int]
    EVENTFD_FIELD_NUMBER: _ClassVar[int]
    EPOLL_FIELD_NUMBER: _ClassVar[int]
    UNIX_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    MEMFD_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    TIMERFD_FIELD_NUMBER: _ClassVar[int]
    SIGNALFD_FIELD_NUMBER: _ClassVar[int]
    PIDFD_FIELD_NUMBER: _ClassVar[int]
    INOTIFY_FIELD_NUMBER: _ClassVar[int]
    UDP_FIELD_NUMBER: _ClassVar[int]
    FIFO_FIELD_NUMBER: _ClassVar[int]
    PTY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PROC_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NETLINK_FIELD_NUMBER: _ClassVar[int]
    flags: int
    locks: _containers.RepeatedCompositeFieldContainer[Lock]
    signal_owner: SignalOwner
    file: RegularFile
    directory: Directory
    device: CharDevice
    pipe: PipeEnd
    eventfd: Eventfd
    epoll: Epoll
    unix: UnixSocket
    tcp: TcpSocket
    memfd: Memfd
    outside: Outside
    timerfd: Timerfd
    signalfd: Signalfd
    pidfd: Pidfd
    inotify: Inotify
    udp: UdpSocket
    fifo: Fifo
    pty: PtyEnd
    queue: PosixQueue
    proc: ProcFile
    name: NameOnly
    netlink: Netlink
    def __init__(self, flags: _Optional[int] = ..., locks: _Optional[_Iterable[_Union[Lock, _Mapping]]] = ..., signal_owner: _Optional[_Union[SignalOwner, _Mapping]] = ..., file: _Optional[_Union[RegularFile, _Mapping]] = ..., directory: _Optional[_Union[Directory, _Mapping]] = ..., device: _Optional[_Union[CharDevice, _Mapping]] = ..., pipe: _Optional[_Union[PipeEnd, _Mapping]] = ..., eventfd: _Optional[_Union[Eventfd, _Mapping]] = ..., epoll: _Optional[_Union[Epoll, _Mapping]] = ..., unix: _Optional[_Union[UnixSocket, _Mapping]] = ..., tcp: _Optional[_Union[TcpSocket, _Mapping]] = ..., memfd: _Optional[_Union[Memfd, _Mapping]] = ..., outside: _Optional[_Union[Outside, _Mapping]] = ..., timerfd: _Optional[_Union[Timerfd, _Mapping]] = ..., signalfd: _Optional[_Union[Signalfd, _Mapping]] = ..., pidfd: _Optional[_Union[Pidfd, _Mapping]] = ..., inotify: _Optional[_Union[Inotify, _Mapping]] = ..., udp: _Optional[_Union[UdpSocket, _Mapping]] = ..., fifo: _Optional[_Union[Fifo, _Mapping]] = ..., pty: _Optional[_Union[PtyEnd, _Mapping]] = ..., queue: _Optional[_Union[PosixQueue, _Mapping]] = ..., proc: _Optional[_Union[ProcFile, _Mapping]] = ..., name: _Optional[_Union[NameOnly, _Mapping]] = ..., netlink: _Optional[_Union[Netlink, _Mapping]] = ...) -> None: ...

class SignalOwner(_message.Message):
    __slots__ = ("kind", "pid", "signal")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    kind: int
    pid: int
    signal: int
    def __init__(self, kind: _Optional[int] = ..., pid: _Optional[int] = ..., signal: _Optional[int] = ...) -> None: ...

class PosixQueue(_message.Message):
    __slots__ = ("name", "removed", "inode", "mode", "uid", "gid", "most", "largest", "position", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    removed: bool
    inode: int
    mode: int
    uid: int
    gid: int
    most: int
    largest: int
    position: int
    size: int
    def __init__(self, name: _Optional[bytes] = ..., removed: bool = ..., inode: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., most: _Optional[int] = ..., largest: _Optional[int] = ..., position: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class RegularFile(_message.Message):
    __slots__ = ("path", "position", "size", "mtime_ns", "dev", "ino", "mode", "blocks", "ctime_ns", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    DEV_FIELD_NUMBER: _ClassVar[int]
    INO_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    position: int
    size: int
    mtime_ns: int
    dev: int
    ino: int
    mode: int
    blocks: int
    ctime_ns: int
    content: Content
    def __init__(self, path: _Optional[bytes] = ..., position: _Optional[int] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., dev: _Optional[int] = ..., ino: _Optional[int] = ..., mode: _Optional[int] = ..., blocks: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., content: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class Directory(_message.Message):
    __slots__ = ("path", "position", "inode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    position: int
    inode: Inode
    def __init__(self, path: _Optional[bytes] = ..., position: _Optional[int] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class CharDevice(_message.Message):
    __slots__ = ("path", "major", "minor")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    major: int
    minor: int
    def __init__(self, path: _Optional[bytes] = ..., major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class PipeEnd(_message.Message):
    __slots__ = ("pipe",)
    PIPE_FIELD_NUMBER: _ClassVar[int]
    pipe: int
    def __init__(self, pipe: _Optional[int] = ...) -> None: ...

class PtyEnd(_message.Message):
    __slots__ = ("pty", "master")
    PTY_FIELD_NUMBER: _ClassVar[int]
    MASTER_FIELD_NUMBER: _ClassVar[int]
    pty: int
    master: bool
    def __init__(self, pty: _Optional[int] = ..., master: bool = ...) -> None: ...

class Eventfd(_message.Message):
    __slots__ = ("count", "semaphore")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEMAPHORE_FIELD_NUMBER: _ClassVar[int]
    count: int
    semaphore: bool
    def __init__(self, count: _Optional[int] = ..., semaphore: bool = ...) -> None: ...

class Epoll(_message.Message):
    __slots__ = ("watches", "busy_poll")
    class Watch(_message.Message):
        __slots__ = ("fd", "events", "data", "description")
        FD_FIELD_NUMBER: _ClassVar[int]
        EVENTS_FIELD_NUMBER: _ClassVar[int]
        DATA_FIELD_NUMBER: _ClassVar[int]
        DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
        fd: int
        events: int
        data: int
        description: int
        def __init__(self, fd: _Optional[int] = ..., events: _Optional[int] = ..., data: _Optional[int] = ..., description: _Optional[int] = ...) -> None: ...
    WATCHES_FIELD_NUMBER: _ClassVar[int]
    BUSY_POLL_FIELD_NUMBER: _ClassVar[int]
    watches: _containers.RepeatedCompositeFieldContainer[Epoll.Watch]
    busy_poll: bytes
    def __init__(self, watches: _Optional[_Iterable[_Union[Epoll.Watch, _Mapping]]] = ..., busy_poll: _Optional[bytes] = ...) -> None: ...

class UnixSocket(_message.Message):
    __slots__ = ("type", "peer", "has_peer", "messages", "shut_read", "shut_write", "options", "peer_gone", "reset", "name", "listening", "backlog", "mode", "connected_to", "under_way", "senders", "pending", "is_pending", "moved", "path", "directory", "owner", "inode", "closed_there")
    class Owner(_message.Message):
        __slots__ = ("uid", "gid")
        UID_FIELD_NUMBER: _ClassVar[int]
        GID_FIELD_NUMBER: _ClassVar[int]
        uid: int
        gid: int
        def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    HAS_PEER_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SHUT_READ_FIELD_NUMBER: _ClassVar[int]
    SHUT_WRITE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PEER_GONE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_TO_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    IS_PENDING_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_THERE_FIELD_NUMBER: _ClassVar[int]
    type: int
    peer: int
    has_peer: bool
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    shut_read: bool
    shut_write: bool
    options: _containers.RepeatedCompositeFieldContainer[SockOpt]
    peer_gone: bool
    reset: bool
    name: bytes
    listening: bool
    backlog: int
    mode: int
    connected_to: bytes
    under_way: _containers.RepeatedCompositeFieldContainer[UnderWay]
    senders: _containers.RepeatedScalarFieldContainer[bytes]
    pending: _containers.RepeatedScalarFieldContainer[int]
    is_pending: bool
    moved: bool
    path: bytes
    directory: bytes
    owner: UnixSocket.Owner
    inode: int
    closed_there: bool
    def __init__(self, type: _Optional[int] = ..., peer: _Optional[int] = ..., has_peer: bool = ..., messages: _Optional[_Iterable[bytes]] = ..., shut_read: bool = ..., shut_write: bool = ..., options: _Optional[_Iterable[_Union[SockOpt, _Mapping]]] = ..., peer_gone: bool = ..., reset: bool = ..., name: _Optional[bytes] = ..., listening: bool = ..., backlog: _Optional[int] = ..., mode: _Optional[int] = ..., connected_to: _Optional[bytes] = ..., under_way: _Optional[_Iterable[_Union[UnderWay, _Mapping]]] = ..., senders: _Optional[_Iterable[bytes]] = ..., pending: _Optional[_Iterable[int]] = ..., is_pending: bool = ..., moved: bool = ..., path: _Optional[bytes] = ..., directory: _Optional[bytes] = ..., owner: _Optional[_Union[UnixSocket.Owner, _Mapping]] = ..., inode: _Optional[int] = ..., closed_there: bool = ...) -> None: ...

class UnderWay(_message.Message):
    __slots__ = ("message", "descriptions")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    message: int
    descriptions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, message: _Optional[int] = ..., descriptions: _Optional[_Iterable[int]] = ...) -> None: ...

class SockOpt(_message.Message):
    __slots__ = ("level", "name", "value")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    level: int
    name: int
    value: bytes
    def __init__(self, level: _Optional[int] = ..., name: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class TcpSocket(_message.Message):
    __slots__ = ("state", "family", "local", "remote", "backlog", "peer", "received", "shut_read", "shut_write", "options", "peer_done", "protocol", "kept", "connected", "deferred", "released")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[TcpSocket.State]
        LISTEN: _ClassVar[TcpSocket.State]
        INSIDE: _ClassVar[TcpSocket.State]
        OUTSIDE: _ClassVar[TcpSocket.State]
        CLOSED: _ClassVar[TcpSocket.State]
        ENDED: _ClassVar[TcpSocket.State]
        PENDING: _ClassVar[TcpSocket.State]
    UNKNOWN: TcpSocket.State
    LISTEN: TcpSocket.State
    INSIDE: TcpSocket.State
    OUTSIDE: TcpSocket.State
    CLOSED: TcpSocket.State
    ENDED: TcpSocket.State
    PENDING: TcpSocket.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SHUT_READ_FIELD_NUMBER: _ClassVar[int]
    SHUT_WRITE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PEER_DONE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    state: TcpSocket.State
    family: int
    local: bytes
    remote: bytes
    backlog: int
    peer: int
    received: bytes
    shut_read: bool
    shut_write: bool
    options: _containers.RepeatedCompositeFieldContainer[SockOpt]
    peer_done: bool
    protocol: int
    kept: str
    connected: bool
    deferred: bool
    released: bool
    def __init__(self, state: _Optional[_Union[TcpSocket.State, str]] = ..., family: _Optional[int] = ..., local: _Optional[bytes] = ..., remote: _Optional[bytes] = ..., backlog: _Optional[int] = ..., peer: _Optional[int] = ..., received: _Optional[bytes] = ..., shut_read: bool = ..., shut_write: bool = ..., options: _Optional[_Iterable[_Union[SockOpt, _Mapping]]] = ..., peer_done: bool = ..., protocol: _Optional[int] = ..., kept: _Optional[str] = ..., connected: bool = ..., deferred: bool = ..., released: bool = ...) -> None: ...

class KeptConnection(_message.Message):
    __slots__ = ("local", "remote", "we_ended", "mss", "options", "scales", "timestamp", "window", "received_until", "sent_until", "received", "sent", "peer_ended")
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    WE_ENDED_FIELD_NUMBER: _ClassVar[int]
    MSS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    SENT_UNTIL_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    PEER_ENDED_FIELD_NUMBER: _ClassVar[int]
    local: bytes
    remote: bytes
    we_ended: bool
    mss: int
    options: int
    scales: int
    timestamp: int
    window: bytes
    received_until: int
    sent_until: int
    received: bytes
    sent: bytes
    peer_ended: bool
    def __init__(self, local: _Optional[bytes] = ..., remote: _Optional[bytes] = ..., we_ended: bool = ..., mss: _Optional[int] = ..., options: _Optional[int] = ..., scales: _Optional[int] = ..., timestamp: _Optional[int] = ..., window: _Optional[bytes] = ..., received_until: _Optional[int] = ..., sent_until: _Optional[int] = ..., received: _Optional[bytes] = ..., sent: _Optional[bytes] = ..., peer_ended: bool = ...) -> None: ...

class Memfd(_message.Message):
    __slots__ = ("shared", "position")
    SHARED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    shared: int
    position: int
    def __init__(self, shared: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Outside(_message.Message):
    __slots__ = ("stdio", "was")
    STDIO_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    stdio: int
    was: str
    def __init__(self, stdio: _Optional[int] = ..., was: _Optional[str] = ...) -> None: ...

class Timerfd(_message.Message):
    __slots__ = ("clock", "settime_flags", "ticks", "left_ns", "interval_ns", "moment_ns")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SETTIME_FLAGS_FIELD_NUMBER: _ClassVar[int]
    TICKS_FIELD_NUMBER: _ClassVar[int]
    LEFT_NS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_NS_FIELD_NUMBER: _ClassVar[int]
    MOMENT_NS_FIELD_NUMBER: _ClassVar[int]
    clock: int
    settime_flags: int
    ticks: int
    left_ns: int
    interval_ns: int
    moment_ns: int
    def __init__(self, clock: _Optional[int] = ..., settime_flags: _Optional[int] = ..., ticks: _Optional[int] = ..., left_ns: _Optional[int] = ..., interval_ns: _Optional[int] = ..., moment_ns: _Optional[int] = ...) -> None: ...

class Signalfd(_message.Message):
    __slots__ = ("mask",)
    MASK_FIELD_NUMBER: _ClassVar[int]
    mask: int
    def __init__(self, mask: _Optional[int] = ...) -> None: ...

class Pidfd(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class NameOnly(_message.Message):
    __slots__ = ("path", "mode", "device", "target")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    mode: int
    device: int
    target: bytes
    def __init__(self, path: _Optional[bytes] = ..., mode: _Optional[int] = ..., device: _Optional[int] = ..., target: _Optional[bytes] = ...) -> None: ...

class ProcFile(_message.Message):
    __slots__ = ("path", "position")
    PATH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    position: int
    def __init__(self, path: _Optional[bytes] = ..., position: _Optional[int] = ...) -> None: ...

class Inotify(_message.Message):
    __slots__ = ("watches",)
    class Watch(_message.Message):
        __slots__ = ("number", "mask", "path", "held")
        NUMBER_FIELD_NUMBER: _ClassVar[int]
        MASK_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        HELD_FIELD_NUMBER: _ClassVar[int]
        number: int
        mask: int
        path: bytes
        held: int
        def __init__(self, number: _Optional[int] = ..., mask: _Optional[int] = ..., path: _Optional[bytes] = ..., held: _Optional[int] = ...) -> None: ...
    WATCHES_FIELD_NUMBER: _ClassVar[int]
    watches: _containers.RepeatedCompositeFieldContainer[Inotify.Watch]
    def __init__(self, watches: _Optional[_Iterable[_Union[Inotify.Watch, _Mapping]]] = ...) -> None: ...

class Netlink(_message.Message):
    __slots__ = ("type", "protocol", "port", "groups", "options")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    type: int
    protocol: int
    port: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    options: _containers.RepeatedCompositeFieldContainer[SockOpt]
    def __init__(self, type: _Optional[int] = ..., protocol: _Optional[int] = ..., port: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ..., options: _Optional[_Iterable[_Union[SockOpt, _Mapping]]] = ...) -> None: ...

class UdpSocket(_message.Message):
    __slots__ = ("family", "local", "remote", "options", "messages", "senders", "memberships", "shut_read", "shut_write")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIPS_FIELD_NUMBER: _ClassVar[int]
    SHUT_READ_FIELD_NUMBER: _ClassVar[int]
    SHUT_WRITE_FIELD_NUMBER: _ClassVar[int]
    family: int
    local: bytes
    remote: bytes
    options: _containers.RepeatedCompositeFieldContainer[SockOpt]
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    senders: _containers.RepeatedScalarFieldContainer[bytes]
    memberships: _containers.RepeatedCompositeFieldContainer[Membership]
    shut_read: bool
    shut_write: bool
    def __init__(self, family: _Optional[int] = ..., local: _Optional[bytes] = ..., remote: _Optional[bytes] = ..., options: _Optional[_Iterable[_Union[SockOpt, _Mapping]]] = ..., messages: _Optional[_Iterable[bytes]] = ..., senders: _Optional[_Iterable[bytes]] = ..., memberships: _Optional[_Iterable[_Union[Membership, _Mapping]]] = ..., shut_read: bool = ..., shut_write: bool = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("family", "device", "group", "only", "sources")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    family: int
    device: str
    group: bytes
    only: bool
    sources: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, family: _Optional[int] = ..., device: _Optional[str] = ..., group: _Optional[bytes] = ..., only: bool = ..., sources: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Fifo(_message.Message):
    __slots__ = ("pipe", "path", "unwritten", "inode")
    PIPE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    UNWRITTEN_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    pipe: int
    path: bytes
    unwritten: bool
    inode: Inode
    def __init__(self, pipe: _Optional[int] = ..., path: _Optional[bytes] = ..., unwritten: bool = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...
