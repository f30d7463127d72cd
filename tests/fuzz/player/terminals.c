/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pseudo terminals: both sides, their settings, sizes and sessions.
 */
#include "player.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

/* two descriptors, how */
static long terminal(const long *a)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK), slave;
	struct termios settings;

	if (master < 0 || grantpt(master) || unlockpt(master)) {
		close(master);
		return -1;
	}
	slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (slave >= 0 && a[2] % 3) {
		tcgetattr(slave, &settings);
		if (a[2] % 3 == 1)
			cfmakeraw(&settings);
		else
			settings.c_lflag &= (tcflag_t) ~(ECHO | ISIG);
		settings.c_cc[VMIN] = (cc_t)(a[3] % 3);
		tcsetattr(slave, TCSANOW, &settings);
	}
	long first = place_fd(master, a[0]), second = place_fd(slave, a[1]);
	return first < 0 || second < 0 ? -1 : 0;
}

/* descriptor, rows, columns */
static long resize(const long *a)
{
	struct winsize size = {.ws_row = (unsigned short)(a[1] % 200), .ws_col = (unsigned short)(a[2] % 300)};

	return ioctl(fd_of(a[0]), TIOCSWINSZ, &size);
}

/* descriptor, what, on: packets, exclusive, what was not read. What the other side has not taken yet is not dropped: that
 * would depend on when the kernel's workers come to it. */
static long mode(const long *a)
{
	struct pollfd mine = {.fd = fd_of(a[0]), .events = POLLIN};
	int on = (int)(a[2] % 2);

	if (!isatty(fd_of(a[0])))
		return -1;
	if (a[1] % 3 == 0)
		return ioctl(fd_of(a[0]), TIOCPKT, &on);
	if (a[1] % 3 == 1)
		return ioctl(fd_of(a[0]), on ? TIOCEXCL : TIOCNXCL);
	poll(&mine, 1, 0); /* takes what is in flight to this side */
	return ioctl(fd_of(a[0]), TCFLSH, TCIFLUSH);
}

/* descriptor: becomes the session's terminal */
static long control(const long *a)
{
	return ioctl(fd_of(a[0]), TIOCSCTTY, 0);
}

/* descriptor, actor: whose group is in the foreground */
static long foreground(const long *a)
{
	return tcsetpgrp(fd_of(a[0]), shared->actors[a[1] % ACTORS].pid);
}

/* descriptor: all of it */
static long terminal_state(const long *a)
{
	struct termios settings;
	struct winsize size;
	int packets = -1, exclusive = -1;

	if (tcgetattr(fd_of(a[0]), &settings))
		return -1;
	if (ioctl(fd_of(a[0]), TIOCGWINSZ, &size))
		return -1;
	ioctl(fd_of(a[0]), TIOCGPKT, &packets);
	ioctl(fd_of(a[0]), TIOCGEXCL, &exclusive);
	say(" %x %x %x %x %d %d size %d %d packets %d exclusive %d group %s session %s", settings.c_iflag,
	    settings.c_oflag, settings.c_cflag, settings.c_lflag, settings.c_cc[VMIN], settings.c_cc[VTIME],
	    size.ws_row, size.ws_col, packets, exclusive, whose(tcgetpgrp(fd_of(a[0]))), whose(tcgetsid(fd_of(a[0]))));
	return 0;
}

const struct verb terminal_verbs[] = {{"terminal", terminal},
				      {"resize", resize},
				      {"mode", mode},
				      {"control_terminal", control},
				      {"foreground", foreground},
				      {"terminal_state", terminal_state},
				      {0}};
