#!/bin/sh
# PID 1 of a machine: mounts what a host has, runs the job that the test has put into /shared as an ordinary user, and
# tells its status.
checkout=$1
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
hostname "$(cat /shared/name)"
cat /shared/scope >/proc/sys/kernel/yama/ptrace_scope
chmod 666 /dev/ttyS1
stty -F /dev/ttyS1 raw
cd /home/scientist || exit
setpriv --reuid=1000 --regid=1000 --init-groups env HOME=/home/scientist PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$checkout" \
	TORPOR_TESTS_PATIENCE=900 \
	"$checkout/.venv/bin/python" -m tests.vm.guest /shared /dev/ttyS1 </dev/null
status=$?
kill -9 -1
umount /shared || status=1
echo "{\"status\": $status}" >/dev/ttyS1
# The test switches the machine off. Until then the shell, which is PID 1, must not end.
while :; do sleep 60; done
