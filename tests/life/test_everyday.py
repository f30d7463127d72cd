"""Everyday commands give what they give without Torpor: in a job that is run, and in one that was woken on either way.

One job waits, is saved, killed and woken, once or twice, and then does all of them; a twin does them undisturbed.
"""

from __future__ import annotations

import grp
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from tests.conformance.harness import wait_until
from tests.life import automount
from tests.life.life import PATIENCE, Life
from tests.users import User

# Each in a new directory, with $group for a second group of the user's, $outside for the PID of a process of the user's
# that is not of the job, $host for what `automount` makes, and $python for one that has psutil. What they print must
# not depend on the time.
COMMANDS = {
    "sed": "echo a >f; chmod 640 f; sed -i s/a/b/ f; stat -c '%a %U %G' f; cat f",
    "sed on a group's file": "echo a >f; chgrp $group f; sed -i s/a/b/ f; stat -c '%U %G' f; cat f",
    "chgrp": "touch f; chgrp $group f; stat -c %G f",
    "cp": "mkdir d; echo a >d/f; ln d/f d/g; ln -s f d/h; chmod 604 d/f; cp -a d e; stat -c '%n %a %U %G %h' e e/*",
    "cp of a group's file": "echo a >f; chgrp $group f; cp -a f g; stat -c '%U %G' g",
    "mv to another file system": "echo a >f; chgrp $group f; mv f /dev/shm/m.$$ && stat -c '%U %G' /dev/shm/m.$$;"
    " rm /dev/shm/m.$$",
    "ACLs": "touch f; setfacl -m u:$(whoami):r f; getfacl -c f; cp -a f g; getfacl -c g; stat -c %A f",
    "ACLs of a group": "touch f; setfacl -m g:$group:rw f; getfacl -c f; cp -a f g; getfacl -c g; stat -c %A f",
    "find": "touch f g; chgrp $group g; find . -group $group -printf '%p %g\\n'; find . -user $(id -u) | sort",
    "tar": "mkdir d; echo a >d/f; tar cf t d; tar tvf t | cut -d' ' -f1-2; mkdir e; tar xpf t -C e; cat e/d/f",
    "ids": "id; id -G",
    "tar of others' files": "tar cf t /etc/hostname 2>/dev/null; tar tvf t | cut -d' ' -f1-2",
    "install": "echo a >f; install -m 750 f g; stat -c '%a %U %G' g; cat g",
    "install of a group's file": "echo a >f; install -m 640 -g $group f g; stat -c '%a %U %G' g",
    "make": "printf 'all: a b\\na:\\n\\t@echo a\\nb: a\\n\\t@echo $(MAKE)\\n' >Makefile; make -j2",
    "git": "git init -q -b main . && git config user.email a@b && git config user.name a && echo a >f && git add f"
    " && GIT_AUTHOR_DATE=2000-01-01T00:00Z GIT_COMMITTER_DATE=2000-01-01T00:00Z git commit -q -m a && git gc -q"
    " && git log --format='%H %s' && git fsck",
    "rsync": "mkdir d; echo a >d/f; chmod 640 d/f; rsync -a d/ e/; stat -c '%n %a %U %G' e/f; cat e/f",
    "rsync of a group's file": "mkdir d; echo a >d/f; chgrp $group d/f; rsync -a d/ e/; stat -c '%U %G' e/f",
    "nohup": "nohup sh -c 'kill -HUP $$; echo alive' </dev/null 2>/dev/null",
    "groups of processes": "python3 -c 'import os; print(os.getpgrp() > 0, os.getsid(0) > 0, os.getppid() > 0)'",
    "job control": "set -m; sleep 100 & kill -STOP %1; kill -CONT %1; kill %1; wait %1; echo $?",
    "job control in front": "echo 'until grep -q ^State:.S /proc/$PPID/status; do sleep 0.01; done; exit 3' >waited;"
    " set -m; sh waited & fg %1; echo $?; jobs",
    "job control on a terminal": "echo 'until [ $(ps -o tpgid= -p $$) = $$ ]; do sleep 0.01; done' >front;"
    " script -qec 'bash --norc -ic \"sh front & fg; echo \\$?; tty >t && echo there\"' s"
    " </dev/null | tr -d '\\r' | sed 's/ [0-9]*$//'; wc -l <t",
    "PID files": "echo $BASHPID >pid; kill -0 $(cat pid) && echo running; test -d /proc/$(cat pid) && echo there",
    "locks": "flock f sh -c 'flock -n f true || echo locked'; flock -n f echo free",
    "lock files": "dotlockfile -l -p f.lock && kill -0 $(cat f.lock) && dotlockfile -u f.lock && echo done",
    "an agent": "eval $(ssh-agent -s) >/dev/null; ssh-add -l; kill -0 $SSH_AGENT_PID && echo there;"
    " ssh-agent -k >/dev/null",
    "pipes": "yes | head -n 100000 | sort | uniq -c; echo ${PIPESTATUS[@]}",
    "shared memory": "python3 -c 'from multiprocessing import shared_memory as s;"
    " a = s.SharedMemory(create=True, size=9); b = s.SharedMemory(a.name);"
    " a.buf[0] = 7; print(b.buf[0]); b.close(); a.close(); a.unlink()'",
    "many processes": "python3 -c 'from multiprocessing import Pool; print(sum(Pool(4).map(abs, range(99))))'",
    "limits": "ulimit -a; umask; nice",
    "signals": "trap 'echo trapped' USR1; kill -USR1 $BASHPID; grep SigIgn /proc/self/status",
    "priorities": "nice -n 5 nice; ionice; taskset -cp $BASHPID | cut -d: -f2; chrt -p $BASHPID | cut -d: -f2",
    "time": "timeout 0.1 sleep 100; echo $?; sleep 0.01; test $(date +%s) -gt 1700000000 && echo now",
    "a sandbox": "unshare -Urm sh -c 'id -u; mount -t tmpfs none /mnt && ls /mnt | wc -l'; ls /mnt | wc -l",
    "System V": "i=$(ipcmk -M 1 | grep -o '[0-9]*$'); ipcs -m -i $i | grep -c bytes; ipcrm -m $i; ipcs -m -i $i 2>&1"
    " | grep -c bytes || echo gone",
    "a process outside": "kill -0 $outside && echo there; test -d /proc/$outside && echo shown",
    "an automount": "ls $host/auto; cat $host/auto/data/file $host/auto/none || mountpoint $host/auto/data",
    "what the host mounts": "cat $host/late/file; mountpoint -q $host/late && echo mounted",
    "what the host unmounts": "ls $host/early; mountpoint -q $host/early || echo unmounted",
    "who": "id -u; id -g; whoami; cd; pwd; env | grep -c .; hostname",
    "a setuid program": "passwd -S | cut -d' ' -f1-2; chage -l $(whoami) | head -n 1",
    "sudo": "sudo -n true || echo no",
    "another group": "sg $group 'id -g; umask'; echo $?",
    "another user": "su -c true nobody </dev/null >/dev/null 2>&1; echo $?",
    "processes": "$python -c 'import psutil; p = psutil.Process(); print(p.is_running(), p.username(), p.nice(),"
    " p.parent().name(), [type(one).__name__ for one in p.children()], psutil.pid_exists(p.ppid()))'",
    "at": "n=$(echo true | at -M now + 1 day 2>&1 | sed -n 's/^job \\([0-9]*\\) at .*/\\1/p');"
    ' atq | grep -c "^$n\\s"; at -c $n | tail -n 1; atrm $n; atq | grep -c "^$n\\s" || echo gone',
    "crontab": "echo '0 0 1 1 * true' | crontab -; crontab -l; crontab -r; crontab -l || echo none",
    "tmux": "tmux -S s -f /dev/null new-session -d 'echo there >p; exec sleep 100';"
    " until [ -s p ]; do sleep 0.01; done; tmux -S s list-sessions -F '#{session_windows} #{session_attached}';"
    " tmux -S s kill-server; cat p",
    "screen": "mkdir -m 700 d; export SCREENDIR=$PWD/d; screen -dmS a sh -c 'echo there >p; exec sleep 100';"
    " until [ -s p ]; do sleep 0.01; done; screen -ls | grep -c Detached; screen -S a -X quit; cat p",
    "an agent of keys": "mkdir -m 700 g; export GNUPGHOME=$PWD/g; echo a >f;"
    " gpg -q --batch --passphrase '' --quick-gen-key a ed25519 sign 2>/dev/null;"
    " gpg -q --sign f; gpg -q --decrypt f.gpg 2>&1 | head -n 1; gpgconf --kill gpg-agent && echo done",
    "R": 'Rscript --vanilla -e \'cat(system("echo a", intern = TRUE), Sys.getenv("USER"),'
    ' unlist(parallel::mclapply(1:4, identity, mc.cores = 2)), "\\n")\'',
    "java": "echo 'class A { public static void main(String[] a) throws Exception {"
    ' System.out.println(new ProcessBuilder("sh", "-c", "exit 3").inheritIO().start().waitFor()'
    ' + System.getProperty("user.name") + ProcessHandle.current().parent().isPresent()); } }\' >A.java;'
    " java -XX:-UsePerfData A.java",
    "node": 'node -e \'console.log(process.ppid > 0, `${require("child_process").execSync("echo a")}`);'
    ' process.on("SIGUSR2", () => process.exit(3)); process.kill(process.pid, "SIGUSR2");'
    " setTimeout(() => {}, 1e6)'; echo $?",
    "perl": 'perl -e \'$| = 1; print getppid > 0, `echo a`, scalar(getpwuid $>), "\\n";'
    ' $SIG{ALRM} = sub { print "alarm\\n" }; alarm 1; sleep 100; exec "echo", "b"\'',
    "times": "TIMEFORMAT=%R-%U; { time true; } 2>&1 | tr 0-9 n; times | tr -s 0-9 n; python3 -c 'import os;"
    " a, b = os.times(), os.times(); print(0 <= b.elapsed - a.elapsed < 100, 0 <= a.user <= b.user)'",
    "a login as another group": "echo 'id -g; umask' | newgrp $group; echo $?",
    "socket activation": "systemd-socket-activate -l $PWD/s sh -c 'test $LISTEN_PID = $$ && echo $LISTEN_FDS >p'"
    " 2>/dev/null & until [ -S s ]; do sleep 0.01; done; until [ -s p ]; do sleep 0.01; python3 -c 'import socket;"
    ' socket.socket(socket.AF_UNIX).connect("s")\' 2>/dev/null; done; cat p; wait',
}
MOUNTED = {"an automount", "what the host mounts"}
NEEDED = {
    "ACLs": "setfacl",
    "ACLs of a group": "setfacl",
    "R": "Rscript",
    "an agent": "ssh-agent",
    "an agent of keys": "gpg-agent",
    "at": "at",
    "crontab": "crontab",
    "git": "git",
    "java": "javac",
    "lock files": "dotlockfile",
    "make": "make",
    "node": "node",
    "rsync": "rsync",
    "rsync of a group's file": "rsync",
    "screen": "screen",
    "socket activation": "systemd-socket-activate",
    "sudo": "sudo",
    "tmux": "tmux",
}
IN_A_CAPSULE = {
    "sed on a group's file",
    "chgrp",
    "cp of a group's file",
    "mv to another file system",
    "ACLs of a group",
    "install of a group's file",
    "rsync of a group's file",
    "find",
    "ids",
    "a process outside",
    "sudo",
    "at",
    "crontab",
    "tar of others' files",
    "a setuid program",
    "another group",
    "a login as another group",
}
"""What differs in a capsule, as docs/woken.md has it."""
IF_GRANTED = {
    "a login as another group",
    "a process outside",
    "a setuid program",
    "another group",
    "at",
    "crontab",
    "sudo",
    "tar of others' files",
}
"""What of it is left where an administrator has granted the user's groups."""

JOB = """
commands=$1 out=$2
until [ -e $out/go ]; do : >$out/beat; sleep 0.02; done
for command in $commands/*; do
    mkdir $out/in; cd $out/in
    ( . $command ) </dev/null >$out/${command##*/}.out 2>&1
    echo "status $?" >>$out/${command##*/}.out
    cd $out; chmod -R u+w in; rm -rf in
done
touch $out/done
"""


class Runner:
    """Runs the commands as a user who is in a second group."""

    _twin: ClassVar[dict[str, str]] = {}

    def __init__(self, user: User, outside: int) -> None:
        self.user = user
        self.group = grp.getgrnam("games")
        self._host = user.tmp / "host"
        self._host.mkdir()
        self.names = [name for name in COMMANDS if name not in NEEDED or shutil.which(NEEDED[name])]
        if not automount.is_possible():
            self.names.remove("an automount")
        self._commands = user.tmp / "commands"
        self._commands.mkdir()
        for number, name in enumerate(self.names):
            known = f"group={self.group.gr_name} host={self._host} outside={outside} python={sys.executable}"
            (self._commands / str(number)).write_text(f"{known}\n{COMMANDS[name]}\n")
        (user.tmp / "job").write_text(JOB)
        (user.tmp / "work").mkdir()
        user.own(user.tmp / "work")
        self._out = user.tmp / "work/out"

    def outputs(self, ways: Sequence[str]) -> dict[str, str]:
        """What each command prints.

        Args:
            ways: none for the undisturbed twin; else "run", and then how it is woken, one after the other.
        """
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        self.user.own(self._out)
        command: list[str | Path] = ["bash", self.user.tmp / "job", self._commands, self._out]
        with automount.host(self._host) as host:
            life = Life(self.user, command, self._out, run=bool(ways), groups=[self.group.gr_gid])
            try:
                for way in ways[1:]:
                    self._wait_alive()
                    life.wake(way)
                self._wait_alive()
                host.change()
                (self._out / "go").touch()
                assert life.end(PATIENCE) == 0, life.said
            finally:
                life.kill()
        outputs = {name: (self._out / f"{number}.out").read_text() for number, name in enumerate(self.names)}
        return {name: output.replace(str(self.user.tmp), "$tmp") for name, output in outputs.items()}

    def outputs_of_twin(self) -> dict[str, str]:
        """What each prints undisturbed: one twin will do for all tests."""
        if not Runner._twin:
            Runner._twin = self.outputs([])
            assert [name for name, output in Runner._twin.items() if not output.endswith("status 0\n")] == []
            assert all(Runner._twin[name].startswith("what is mounted") for name in self.names if name in MOUNTED)
        return Runner._twin

    def _wait_alive(self) -> None:
        beat = self._out / "beat"
        beat.unlink(missing_ok=True)
        wait_until(beat.exists, "it runs")


@pytest.fixture
def runner(ordinary_account: User) -> Iterator[Runner]:
    if os.geteuid():
        pytest.skip("it takes root to be a user of another group")
    outside = ordinary_account.popen(["sleep", "infinity"])
    try:
        yield Runner(ordinary_account, outside.pid)
    finally:
        outside.kill()
        outside.wait()


@pytest.mark.parametrize(
    "ways",
    [
        "run",
        pytest.param("run native", marks=pytest.mark.soak),  # a part of the next
        "run native native",
        pytest.param("run capsule", marks=pytest.mark.soak),
        "run capsule capsule",
        "run capsule native",
        "run capsule granted",
    ],
)
def test_everyday_commands(runner: Runner, ways: str) -> None:
    way = ways.rpartition(" ")[2]
    if way == "granted" and not shutil.which("newgidmap"):
        pytest.skip("newgidmap (Debian: uidmap) is not installed")
    alone = runner.outputs_of_twin()
    told = runner.outputs(ways.split())
    differing = {name for name in alone if told[name] != alone[name]}
    allowed = {"capsule": IN_A_CAPSULE, "granted": IF_GRANTED}.get(way, set()) & set(alone)
    assert {name: (alone[name], told[name]) for name in differing - allowed} == {}
    assert differing == allowed, "docs/woken.md says what differs in a capsule"
