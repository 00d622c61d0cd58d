//! A program that ends with the test that started it, even if that is killed.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Child, Command, Stdio},
};

/// The shell ends the program when its own standard input ends, by the signal that stands there or else by `$0`.
const SCRIPT: &str = r#"exec 3<&0; "$@" </dev/null & exec >/dev/null; read -r how <&3; kill -"${how:-$0}" $!; wait $!"#;

pub struct Kept(Child);

impl Kept {
    /// A command that [`Kept::start`] starts; arguments and the like may be added. `signal` is how it ends at last.
    pub fn command(signal: &str, program: impl AsRef<OsStr>) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, signal]).arg(program).stdin(Stdio::piped());
        shell
    }

    pub fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("the program starts"))
    }

    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().expect("its output")
    }

    /// The program's process.
    pub fn pid(&self) -> Option<u32> {
        let shell = self.0.id();
        std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Ends the program by a signal, and waits for that.
    pub fn end(&mut self, signal: &str) {
        let _ = self.0.stdin.take().map(|mut it| writeln!(it, "{signal}"));
        let _ = self.0.wait();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
