//! A container's log in the format of CRI: `time stream F|P text`. Source: KEP-1367, containerd `internal/cri/io/logger.go`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::base::clock;

/// A log file is put aside when it reaches this (`containerLogMaxSize`), and this many are kept (`containerLogMaxFiles`).
const SIZE_MAX: u64 = 10 << 20;
const KEPT: u32 = 5;
/// The longest line that is written in one piece, as containerd's.
const LINE_MAX: usize = 16 << 10;

pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Log {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, size: 0 }
    }

    fn write(&mut self, stream: &str, tag: char, line: &[u8]) {
        if self.size > SIZE_MAX {
            self.rotate();
        }
        if self.file.is_none() {
            self.file = fs::OpenOptions::new().create(true).append(true).open(&self.path).ok();
            self.size = self.file.as_ref().and_then(|it| it.metadata().ok()).map_or(0, |it| it.len());
        }
        let now = clock::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
        let mut record = format!("{now} {stream} {tag} ").into_bytes();
        record.extend_from_slice(line);
        record.push(b'\n');
        self.size += record.len() as u64;
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&record);
        }
    }

    fn rotate(&mut self) {
        let aside = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..KEPT - 1).rev() {
            let _ = fs::rename(aside(number), aside(number + 1));
        }
        let _ = fs::rename(&self.path, aside(1));
        self.file = None;
        self.size = 0;
    }
}

/// One stream of output, cut into lines.
pub struct Lines {
    file: File,
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    pub fn new(fd: OwnedFd, stream: &'static str) -> Self {
        Self { file: fd.into(), stream, pending: Vec::new() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Reads what is there into the log and returns it; `None` at the end.
    pub fn read(&mut self, log: &mut Log) -> Option<Vec<u8>> {
        let mut buffer = vec![0u8; LINE_MAX];
        let count = match self.file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(Vec::new()),
            // A terminal that its last process has left reads as an error.
            Ok(0) | Err(_) => {
                if !self.pending.is_empty() {
                    log.write(self.stream, 'P', &std::mem::take(&mut self.pending));
                }
                return None;
            }
            Ok(count) => count,
        };
        buffer.truncate(count);
        for part in buffer.split_inclusive(|it| *it == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) => {
                    self.pending.extend_from_slice(end);
                    log.write(self.stream, 'F', &std::mem::take(&mut self.pending));
                }
                None => self.pending.extend_from_slice(part),
            }
            if self.pending.len() >= LINE_MAX {
                log.write(self.stream, 'P', &std::mem::take(&mut self.pending));
            }
        }
        Some(buffer)
    }
}
