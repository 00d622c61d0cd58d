//! Terminals of containers: each of the container's own `/dev/pts`, so that `tty` tells its name and a shell finds it. Facts: runc's
//! `libcontainer/console_linux.go`, pty(7), ioctl_tty(2).

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::{
    cmsg_space,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        stat::{fstat, makedev},
    },
};

const FLAGS: OFlag = OFlag::O_RDWR.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A new terminal of the container with this root: its master and its slave. Links in the container lead nowhere out of it, and what is not
/// the kernel's multiplexer is refused.
pub fn open(root: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let how = OpenHow::new().flags(FLAGS).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let master = openat2(File::open(root)?.as_fd(), "dev/pts/ptmx", how)?;
    if fstat(&master)?.st_rdev != makedev(5, 2) {
        return Err(io::Error::other("/dev/pts/ptmx is no multiplexer of terminals"));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptor is open and the kernel reads one live integer.
    nix::errno::Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: no pointers; the descriptor that comes back is nobody else's.
    let slave = unsafe { OwnedFd::from_raw_fd(nix::errno::Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, FLAGS.bits()))?) };
    Ok((master, slave))
}

/// Hands a descriptor to the process at the other end.
pub fn send(to: &UnixStream, it: &OwnedFd) -> io::Result<()> {
    let rights = [it.as_raw_fd()];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&[0])], &[ControlMessage::ScmRights(&rights)], MsgFlags::empty(), None)?;
    Ok(())
}

/// The descriptor that the other end has sent.
pub fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = ([0], cmsg_space!([std::os::fd::RawFd; 1]));
    let mut slices = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let received = message.cmsgs()?.find_map(|it| if let ControlMessageOwned::ScmRights(all) = it { all.first().copied() } else { None });
    // SAFETY: the kernel has just made this descriptor for this process.
    received.map(|it| unsafe { OwnedFd::from_raw_fd(it) }).ok_or_else(|| io::Error::other("no terminal came"))
}

/// Tells a terminal its size.
pub fn resize(terminal: &impl AsRawFd, size: &nix::pty::Winsize) {
    // SAFETY: the terminal is open and the size is live over the call.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, size as *const _) };
}

/// Makes standard input the terminal that controls this session.
pub fn control() {
    // SAFETY: no pointers.
    unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
}
