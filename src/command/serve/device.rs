//! What is served, as it is written on the command line.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use vfio_ccw::volume::BLOCK;

use crate::command::options::bytes;

/// Devices that one word names at most.
const MOST: u16 = 4096;

/// One `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceWord {
    pub(super) kind: Kind,
    pub(super) count: u16,
    pub(super) name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Fba { image: PathBuf, read_only: bool, size: Option<u64> },
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Fba { .. } => "fba",
        }
    }
}

impl FromStr for DeviceWord {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let mut parts = word.split(',');
        let what = parts.next().unwrap_or_default();
        let mut kind = match what.split_once(':') {
            None if what == "null" => Kind::Null,
            Some(("fba", image)) if !image.is_empty() => {
                Kind::Fba { image: image.into(), read_only: false, size: None }
            }
            _ => {
                return Err(format!(
                    "'{what}' is not a device: use null or fba:FILE, with ',ro', ',size=BYTES', ',count=N' or ',name=NAME' behind it"
                ));
            }
        };
        let (mut count, mut name) = (1, None);
        for option in parts {
            match (option.split_once('='), &mut kind) {
                (None, Kind::Fba { read_only, .. }) if option == "ro" => *read_only = true,
                (None, Kind::Null) if option == "ro" => {
                    return Err(
                        "the null device has nothing to protect: leave ',ro' away".to_owned()
                    );
                }
                (Some(("count", number)), _) => {
                    count = number
                        .parse()
                        .ok()
                        .filter(|count| (1..=MOST).contains(count))
                        .ok_or_else(|| format!("'{number}' is not a count: use 1 to {MOST}"))?;
                }
                (Some(("name", text)), _) => name = Some(checked(text)?),
                (Some(("size", text)), Kind::Fba { size, .. }) => *size = Some(whole_blocks(text)?),
                _ => {
                    return Err(format!(
                        "'{option}' is not an option of a device: use ro, size=BYTES, count=N or name=NAME (a file with a comma in its name needs a link without)"
                    ));
                }
            }
        }
        Ok(DeviceWord { kind, count, name })
    }
}

/// Makes an image of `bytes` zeros where there is none; one that is there stays as it is.
pub(super) fn make(image: &Path, bytes: u64) -> io::Result<()> {
    match File::create_new(image) {
        Ok(file) => file.set_len(bytes),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The size of an image that is to be made.
fn whole_blocks(text: &str) -> Result<u64, String> {
    let size = bytes(text)?;
    match size > 0 && size.is_multiple_of(BLOCK) {
        true => Ok(size),
        false => Err(format!("'{text}' is not a size: use a positive multiple of {BLOCK}")),
    }
}

/// A name that can be that of a file.
fn checked(name: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(is_plain)
        && !name.starts_with('.')
    {
        true => Ok(name.to_owned()),
        false => {
            Err(format!("'{name}' is not a name: use up to 64 letters, digits, '-', '_' and '.'"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let plain = DeviceWord { kind: Kind::Null, count: 1, name: None };
        assert_eq!("null".parse(), Ok(plain.clone()));
        assert_eq!("null,count=64".parse(), Ok(DeviceWord { count: 64, ..plain }));
        let disk = |read_only| Kind::Fba { image: "a/b.img".into(), read_only, size: None };
        assert_eq!(
            "fba:a/b.img".parse(),
            Ok(DeviceWord { kind: disk(false), count: 1, name: None })
        );
        let all = DeviceWord { kind: disk(true), count: 2, name: Some("root".to_owned()) };
        assert_eq!("fba:a/b.img,ro,name=root,count=2".parse(), Ok(all));
        let made: DeviceWord = "fba:a/b.img,size=64MiB".parse().unwrap();
        assert!(matches!(made.kind, Kind::Fba { size: Some(67_108_864), .. }), "{made:?}");
    }

    #[test]
    fn others_are_refused_with_what_is_possible() {
        for (word, says) in [
            ("", "use null or fba:FILE"),
            ("fba", "use null or fba:FILE"),
            ("fba:", "use null or fba:FILE"),
            ("eckd:x", "use null or fba:FILE"),
            ("null,ro", "nothing to protect"),
            ("fba:x,rw", "'rw' is not an option"),
            ("fba:a,b.img", "needs a link"),
            ("null,size=1M", "'size=1M' is not an option"),
            ("fba:x,size=0", "a positive multiple of 512"),
            ("fba:x,size=1000", "a positive multiple of 512"),
            ("fba:x,size=big", "big"),
            ("null,count=0", "use 1 to 4096"),
            ("null,count=many", "use 1 to 4096"),
            ("null,name=../x", "is not a name"),
            ("null,name=", "is not a name"),
            ("null,name=.x", "is not a name"),
        ] {
            let error = word.parse::<DeviceWord>().unwrap_err();
            assert!(error.contains(says), "{word}: {error}");
        }
    }
    #[test]
    fn an_image_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        make(&image, 4096).unwrap();
        std::fs::write(&image, b"what a guest wrote").unwrap();
        make(&image, 8192).unwrap();
        assert_eq!(std::fs::read(&image).unwrap(), b"what a guest wrote");
        assert!(make(&folder.path().join("none/disk.img"), 512).is_err());
    }
}
