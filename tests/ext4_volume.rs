//! A real file system goes through channel programs and comes back byte for byte.
#![cfg(feature = "cli")]

pub mod command_line;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_line::{Ended, run};
use tempfile::TempDir;

/// A tool of e2fsprogs, which may stand where only root's PATH leads.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .map(|folder: PathBuf| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("SKIPPED: there is no {name} here");
    }
    found
}

/// A folder with an ext4 image in it: 5 MiB and one block more, so that the last transfer of a copy
/// is a short one.
fn ext4() -> Option<(TempDir, PathBuf)> {
    let mkfs = tool("mkfs.ext4")?;
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    for bytes in [0usize, 1, 511, 4097, 300_001] {
        let contents: Vec<u8> = (0..bytes).map(|index| (index * 7 % 251) as u8).collect();
        fs::write(files.join(format!("file-{bytes}")), contents).unwrap();
    }
    let image = folder.path().join("disk.img");
    fs::File::create(&image).unwrap().set_len((5 << 20) + 1024).unwrap();
    let made = Command::new(mkfs)
        .args(["-q", "-F", "-b", "1024", "-d"])
        .args([&files, &image])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    Some((folder, image))
}

fn copy(what: &str, image: &Path, other: &Path, more: &[&str]) -> Ended {
    let [image, other] = [image, other].map(|path| path.to_str().unwrap());
    run([what, "--image", image, other].iter().chain(more))
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (left, right) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    assert_eq!(left.len(), right.len());
    let differs = left.iter().zip(&right).position(|(left, right)| left != right);
    assert_eq!(differs, None, "first byte that differs");
}

#[track_caller]
fn assert_sound(image: &Path) {
    if let Some(e2fsck) = tool("e2fsck") {
        let checked = Command::new(e2fsck).arg("-fn").arg(image).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }
}

fn there_and_back(more: &[&str]) {
    let Some((folder, image)) = ext4() else {
        return;
    };
    let out = folder.path().join("out.img");
    // What is in the target before must not shine through, and what is too long must go.
    fs::write(&out, vec![0xa5; 6 << 20]).unwrap();
    copy("copy-out", &image, &out, more).with_code(0);
    assert_same(&image, &out);
    assert_sound(&out);

    let back = folder.path().join("back.img");
    let create: Vec<&str> = more.iter().copied().chain(["--create"]).collect();
    copy("copy-in", &back, &out, &create).with_code(0);
    assert_same(&image, &back);
    assert_sound(&back);

    let larger = folder.path().join("larger.img");
    fs::write(&larger, vec![0x5a; 8 << 20]).unwrap();
    copy("copy-in", &larger, &out, more).with_code(0);
    let (larger, image) = (fs::read(larger).unwrap(), fs::read(image).unwrap());
    assert!(larger[..image.len()] == image, "the copy is not what was copied");
    assert!(larger[image.len()..].iter().all(|byte| *byte == 0x5a), "more was written");
}

#[test]
fn copies_are_identical() {
    there_and_back(&[]);
}

#[test]
fn copies_are_identical_on_epoll() {
    there_and_back(&["--driver", "epoll", "--subchannels", "3"]);
}

#[test]
fn copies_are_identical_on_one_subchannel_without_a_cache() {
    there_and_back(&["--subchannels", "1", "--mode", "on-demand", "--interrupts", "eventfd"]);
}

/// An image of `bytes` bytes.
fn image(folder: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, vec![7; bytes]).unwrap();
    path
}

#[test]
fn a_copy_onto_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk.img", 4096);
    let link = folder.path().join("link.img");
    fs::hard_link(&disk, &link).unwrap();
    assert_eq!(fs::metadata(&disk).unwrap().ino(), fs::metadata(&link).unwrap().ino());
    for what in ["copy-out", "copy-in"] {
        let message = copy(what, &disk, &link, &[]).error();
        assert!(message.contains("are the same file"), "{message}");
        assert!(message.contains("disk.img") && message.contains("link.img"), "{message}");
        assert_eq!(fs::read(&disk).unwrap(), vec![7; 4096]);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk.img", 4096);
    let large = folder.path().join("large.img");
    fs::write(&large, vec![9; 8192]).unwrap();
    // The image is there, so there is nothing to create.
    for more in [&[][..], &["--create"][..]] {
        let message = copy("copy-in", &disk, &large, more).error();
        for words in ["8192 bytes", "has 4096", "truncate -s 8192"] {
            assert!(message.contains(words), "no '{words}' in {message}");
        }
        assert_eq!(fs::read(&disk).unwrap(), vec![7; 4096]);
    }
}

#[test]
fn inputs_that_are_no_blocks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disk = image(folder.path(), "disk.img", 4096);
    for (bytes, padded) in [(1000, "truncate -s 1024"), (0, "truncate -s 512")] {
        let ragged = image(folder.path(), "ragged.img", bytes);
        let message = copy("copy-in", &disk, &ragged, &[]).error();
        assert!(message.contains(&format!("{bytes} bytes")), "{message}");
        assert!(message.contains(padded), "{message}");
    }
    let missing = folder.path().join("missing.img");
    let message = copy("copy-in", &missing, &disk, &[]).error();
    assert!(message.contains("missing.img") && message.contains("truncate"), "{message}");
    assert!(!missing.exists(), "made only with --create");
}
