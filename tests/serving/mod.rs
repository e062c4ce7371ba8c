//! `vfio-ccw serve` as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout};
use std::sync::Arc;

use tempfile::TempDir;

use super::command_line::{Ended, vfio_ccw, wait};
use super::confinement;

/// A server that clients can connect to. Dropped, it is killed.
#[derive(Debug)]
pub struct Serving {
    child: Option<Child>,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    /// What was read of both.
    said: [String; 2],
    folder: Arc<TempDir>,
}

impl Serving {
    /// Serves devices in a folder of their own, and waits until that is ready.
    #[track_caller]
    pub fn start(devices: &[&str], more: &[&str]) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("room for sockets"));
        Serving::start_in(&folder, devices, more)
    }

    /// The same in a folder where others have been.
    #[track_caller]
    pub fn start_in(folder: &Arc<TempDir>, devices: &[&str], more: &[&str]) -> Self {
        let mut arguments = vec!["serve"];
        devices.iter().for_each(|device| arguments.extend(["--device", device]));
        arguments.extend(["--socket-dir", folder.path().to_str().expect("plain"), "--log", "info"]);
        let mut child = vfio_ccw(arguments.iter().chain(more)).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while !said.ends_with("ready\n") {
            if stdout.read_line(&mut said).expect("UTF-8 from a pipe") == 0 {
                stderr.read_to_string(&mut said).expect("UTF-8 from a pipe");
                panic!("it is never ready: {said}");
            }
        }
        Serving {
            child: Some(child),
            stdout,
            stderr,
            said: [said, String::new()],
            folder: folder.clone(),
        }
    }

    /// Where its sockets are.
    pub fn folder(&self) -> &str {
        self.folder.path().to_str().expect("plain")
    }

    /// The socket of the device with this name.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.sock"))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("not ended").id()
    }

    /// Sends it a signal.
    pub fn send(&self, signal: i32) {
        confinement::send(self.id(), signal);
    }

    /// Reads standard error until a line that contains `words`; `None` where it ends before.
    pub fn until_it_says(&mut self, words: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stderr.read_line(&mut line).expect("UTF-8 from a pipe") == 0 {
                return None;
            }
            self.said[1].push_str(&line);
            if line.contains(words) {
                return Some(line);
            }
        }
    }

    /// Ends it at once: SIGKILL.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("not ended");
        child.kill().expect("it is there");
        child.wait().expect("it is a child");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let mut child = self.child.take().expect("not ended");
        let status = wait(&mut child);
        let [mut stdout, mut stderr] = std::mem::take(&mut self.said);
        self.stdout.read_to_string(&mut stdout).expect("UTF-8 from a pipe");
        self.stderr.read_to_string(&mut stderr).expect("UTF-8 from a pipe");
        Ended { status, stdout, stderr }
    }

    /// Tells it to end, and asserts that it does so as it should.
    #[track_caller]
    pub fn ends_well(self) -> Ended {
        self.send(libc::SIGTERM);
        let ended = self.end().with_code(0);
        assert!(!ended.stderr.contains("ERROR"), "{ended:#?}");
        ended
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The sockets in a folder, by name.
pub fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry"));
    let is_socket = |entry: &fs::DirEntry| entry.file_type().expect("its type").is_socket();
    let mut sockets: Vec<_> = entries.filter(is_socket).map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}

/// Whether something listens at this socket.
pub fn is_served(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// The page of a metrics endpoint.
#[track_caller]
pub fn scrape(address: &str) -> String {
    use std::io::Write;

    let mut stream = TcpStream::connect(address).expect("the endpoint listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page of text");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    page
}
