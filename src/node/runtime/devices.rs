//! Which devices a container may use, under control groups of version 2: a program in the kernel's own code, attached to the group.
//! Source: the kernel's `include/uapi/linux/bpf.h`, runc's `libcontainer/cgroups/devices`.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

/// Devices that every container has, as (major, minor); of 136, the terminals, all: null, zero, full, random, urandom, tty, ptmx.
pub const ALLOWED: [(i32, Option<i32>); 8] = [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// `enum bpf_cmd`, `bpf_prog_type`, `bpf_attach_type`, and bits of `bpf_cgroup_dev_ctx.access_type`.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const CHARACTER: i32 = 2;
const MAKE_NODE: i32 = 1;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination below, source above.
    registers: u8,
    offset: i16,
    value: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, value }
}

/// A word of the context that register 1 points to.
const fn load(to: u8, offset: i16) -> Instruction {
    instruction(0x61, to, 1, offset, 0)
}

/// Jumps over `skip` instructions unless the register is `value`.
const fn unless(register: u8, value: i32, skip: i16) -> Instruction {
    instruction(0x55, register, 0, skip, value)
}

fn answer(is_allowed: bool) -> [Instruction; 2] {
    [instruction(0xb7, 0, 0, 0, i32::from(is_allowed)), instruction(0x95, 0, 0, 0, 0)]
}

/// Anybody may make nodes; only character devices of the list are opened.
fn program() -> Vec<Instruction> {
    let (kind, access, major, minor) = (2, 3, 4, 5);
    let mut all = vec![
        load(kind, 0),
        instruction(0xbf, access, kind, 0, 0),
        instruction(0x57, kind, 0, 0, 0xffff),
        instruction(0x77, access, 0, 0, 16),
        load(major, 4),
        load(minor, 8),
        unless(access, MAKE_NODE, 2),
    ];
    all.extend(answer(true));
    all.push(unless(kind, CHARACTER, ALLOWED.iter().map(|it| 3 + i16::from(it.1.is_some())).sum()));
    for (wanted, part) in ALLOWED {
        all.push(unless(major, wanted, 2 + i16::from(part.is_some())));
        all.extend(part.map(|it| unless(minor, it, 2)));
        all.extend(answer(true));
    }
    all.extend(answer(false));
    all
}

/// The parts of `union bpf_attr` that are used here.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    rest: [u64; 14],
}

#[repr(C)]
struct Attach {
    group: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes of the live structure as it has, and what it points to is live as well.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as RawFd) }
}

/// Restricts the group at `path` to the devices of every container.
pub fn restrict(path: &Path) -> io::Result<()> {
    let (program, group) = (program(), File::open(path)?);
    let load = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let loaded = bpf(PROG_LOAD, &load)?;
    // SAFETY: the kernel has just given this descriptor, and nobody else has it.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let attach = Attach { group: group.as_raw_fd() as u32, program: loaded.as_raw_fd() as u32, kind: CGROUP_DEVICE, flags: ALLOW_MULTI };
    bpf(PROG_ATTACH, &attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn allows(kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let (program, mut at, mut registers) = (program(), 0usize, [0i32; 6]);
        loop {
            let it = program[at];
            let to = usize::from(it.registers & 15);
            match it.code {
                0x61 => registers[to] = [access << 16 | kind, major, minor][usize::try_from(it.offset / 4).expect("an offset")],
                0xbf => registers[to] = registers[usize::from(it.registers >> 4)],
                0x57 => registers[to] &= it.value,
                0x77 => registers[to] >>= it.value,
                0xb7 => registers[to] = it.value,
                0x55 if registers[to] != it.value => at += usize::try_from(it.offset).expect("a jump ahead"),
                0x55 => (),
                0x95 => return registers[0] == 1,
                other => panic!("unknown instruction {other:x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn containers_have_a_few_devices() {
        const BLOCK: i32 = 1;
        // (kind, access: make 1, read 2, write 4, major, minor)
        let cases = [
            (CHARACTER, 6, 1, 3, true),
            (CHARACTER, 2, 1, 9, true),
            (CHARACTER, 6, 136, 7, true),
            (CHARACTER, 6, 5, 2, true),
            (CHARACTER, 6, 5, 1, false),
            (CHARACTER, 2, 1, 1, false),
            (CHARACTER, 6, 10, 200, false),
            (BLOCK, 2, 8, 0, false),
            (BLOCK, 2, 1, 3, false),
            (BLOCK, MAKE_NODE, 8, 0, true),
            (CHARACTER, 3, 10, 200, false),
        ];
        for (kind, access, major, minor, expected) in cases {
            assert_eq!(allows(kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
        }
    }
}
