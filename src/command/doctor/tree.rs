//! The files that describe a machine, below a root.
//!
//! Files are as strange as whoever made them. No more of one is read than a bound, none that could make
//! its reader wait is opened, and of its text only what a terminal can be trusted with is kept.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use rustix::fs::Access;

/// Most bytes that are read of a file.
const MOST_BYTES: u64 = 64 << 10;

/// Most characters that are kept of a line.
const MOST_OF_A_LINE: usize = 80;

/// Most names that are read of a folder: a bus with every subchannel of four sets, and some more.
const MOST_NAMES: usize = 300_000;

/// The files below a root.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Below `root`.
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Tree { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The beginning of a file as text without blanks around it. What is no printable ASCII is shown
    /// as `?`.
    pub(super) fn text(&self, path: &str) -> io::Result<String> {
        let path = self.at(path);
        // Devices and pipes do things when they are opened, or never answer.
        if !fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        let shown = |byte: u8| match byte {
            b'\n' | b'\t' | b' '..=b'~' => char::from(byte),
            _ => '?',
        };
        let text: String = bytes.into_iter().map(shown).collect();
        Ok(text.trim().to_owned())
    }

    /// The first line of a file, and no more of it than fits beside other things.
    pub(super) fn line(&self, path: &str) -> io::Result<String> {
        let text = self.text(path)?;
        Ok(text.lines().next().unwrap_or_default().chars().take(MOST_OF_A_LINE).collect())
    }

    /// The names in a folder, in order, or none where it cannot be read.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at(path)) else {
            return Vec::new();
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut names: Vec<String> = entries.take(MOST_NAMES).filter_map(name).collect();
        names.sort_unstable();
        names
    }

    /// The last name of what a symbolic link points to. The link is not followed.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.at(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Whether there is something; a link to nothing, or in a circle, is nothing.
    pub(super) fn has(&self, path: &str) -> bool {
        fs::metadata(self.at(path)).is_ok()
    }

    /// Whether this user may read and write a file. It is not opened: an open of a device node has
    /// effects.
    pub(super) fn may_use(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::access(self.at(path), Access::READ_OK | Access::WRITE_OK)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn tree_of(make: impl FnOnce(&Path)) -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let tree = Tree::new(folder.path());
        (folder, tree)
    }

    #[test]
    fn a_huge_file_is_read_to_the_bound() {
        let (_folder, tree) = tree_of(|root| {
            let file = File::create(root.join("huge")).unwrap();
            file.set_len(1 << 40).unwrap();
            fs::write(root.join("long"), vec![b'x'; 100_000]).unwrap();
        });
        assert_eq!(tree.text("/huge").unwrap(), "?".repeat(65_536));
        assert_eq!(tree.text("/long").unwrap(), "x".repeat(65_536));
        assert_eq!(tree.line("/long").unwrap(), "x".repeat(80));
    }

    #[test]
    fn binary_becomes_something_that_a_terminal_can_show() {
        let bytes = b" \x1b[2Jred\x00\xff\xc3\xa9\r\nnext\t1 \n";
        let (_folder, tree) = tree_of(|root| fs::write(root.join("odd"), bytes).unwrap());
        assert_eq!(tree.text("/odd").unwrap(), "?[2Jred?????\nnext\t1");
        assert_eq!(tree.line("/odd").unwrap(), "?[2Jred?????");
    }

    #[test]
    fn links_in_a_circle_folders_and_pipes_are_not_read() {
        let (_folder, tree) = tree_of(|root| {
            symlink("b", root.join("a")).unwrap();
            symlink("a", root.join("b")).unwrap();
            let fifo = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), fifo, mode, 0).unwrap();
        });
        assert!(tree.text("/a").is_err() && !tree.has("/a") && tree.may_use("/a").is_err());
        assert!(tree.names("/a").is_empty());
        assert_eq!(tree.link("/a").as_deref(), Some("b"));
        // Nobody writes into it: an open would wait.
        for no_file in ["/pipe", "/"] {
            assert_eq!(tree.text(no_file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_not_there() {
        let (_folder, tree) = tree_of(|_| ());
        assert_eq!(tree.text("/sys/x").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tree.may_use("/dev/iommu").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(tree.names("/sys").is_empty() && tree.link("/sys/driver").is_none());
    }
}
