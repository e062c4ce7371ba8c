//! The sockets of a server that a path names.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The socket at `path`, or those in the folder `path`, by name: those of disk 10 come after those of disk 9.
///
/// # Errors
///
/// There is nothing at `path`, it cannot be looked at, or the folder has no socket.
pub fn sockets(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut sockets = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            sockets.push(entry.path());
        }
    }
    if sockets.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no socket there"));
    }
    sockets.sort_by_key(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.map(|name| (name.len(), name))
    });
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_folder_is_its_sockets_and_anything_else_is_itself() {
        let folder = tempfile::tempdir().unwrap();
        assert!(sockets(folder.path()).unwrap_err().to_string().contains("no socket there"));
        let names = ["fba10.sock", "fba9.sock", "fba0.sock"];
        let _held: Vec<_> =
            names.iter().map(|name| UnixListener::bind(folder.path().join(name))).collect();
        fs::write(folder.path().join("notes"), "").unwrap();
        let found = sockets(folder.path()).unwrap();
        let found: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(found, ["fba0.sock", "fba9.sock", "fba10.sock"]);
        let one = folder.path().join("fba0.sock");
        assert_eq!(sockets(&one).unwrap(), [one]);
        assert!(sockets(&folder.path().join("none")).is_err());
    }
}
