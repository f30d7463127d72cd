#!/bin/busybox sh
# The first program of a machine, in its initramfs: mounts its three disks, the system, the checkout (at the path that it
# has on the host; the command line names it) and the folder of the test, and goes on with guest.sh of the checkout.
set -eu
b=/bin/busybox
$b mount -t proc proc /proc
for module in /modules/*; do $b insmod "$module"; done
$b mount -t devtmpfs dev /dev
read -r words </proc/cmdline
checkout=
for word in $words; do
	case $word in torpor.checkout=*) checkout=${word#*=} ;; esac
done
$b mount -t ext4 /dev/vda /mnt
$b mkdir -p "/mnt$checkout" /mnt/shared
$b mount -t ext4 -o ro /dev/vdb "/mnt$checkout"
$b mount -t ext4 /dev/vdc /mnt/shared
$b mount -t devtmpfs dev /mnt/dev
$b umount /proc
exec $b switch_root /mnt /bin/sh "$checkout/tests/vm/guest.sh" "$checkout"
