//! The command as a server and as a client of one, and a guest whose memory it can map.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::confinement;

/// `bytes` of guest memory from address 0, in a memfd.
pub fn guest(bytes: usize) -> Arc<GuestMemoryMmap> {
    let memfd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&memfd, bytes as u64).expect("room for it");
    let range = (GuestAddress(0), bytes, Some(FileOffset::new(memfd.into(), 0)));
    Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).expect("address space for it"))
}

/// The sockets in a folder, by name.
pub fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry"));
    let is_socket = |entry: &fs::DirEntry| entry.file_type().expect("its type").is_socket();
    let mut sockets: Vec<_> = entries.filter(is_socket).map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}

/// A process that is killed with this, where it has not ended before.
#[derive(Debug)]
pub struct Serve(Child);

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vfio-ccw"))
}

impl Serve {
    /// `vfio-ccw serve` with these options and this path behind them, once it is ready.
    pub fn start(options: &[&str], path: &Path) -> Self {
        let mut command = command();
        command.arg("serve").args(options).arg(path).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the command starts");
        let output = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "ready"), "the server ends before it is ready");
        Serve(process)
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        confinement::send(self.0.id(), signal);
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().expect("it is there");
        self.0.wait().expect("it is a child");
    }

    /// SIGTERM; the status that it exits with.
    pub fn end(mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.0.wait().expect("it is a child").code()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `vfio-ccw` with a load on the servers of a folder.
pub fn client(folder: &Path) -> Serve {
    let mut command = command();
    command.args(["--seconds", "600", "--quiet", "--metrics", "off", "--remote"]).arg(folder);
    Serve(command.stdout(Stdio::null()).spawn().expect("the command starts"))
}
