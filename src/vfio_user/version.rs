//! What the two sides agree upon before anything else.

use serde_json::{Map, Value, json};

/// Bytes of version data that are read.
const MOST_DATA: usize = 64 << 10;

/// Version of the protocol: major, minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Must be the same on both sides.
    pub major: u16,
    /// The smaller of both counts.
    pub minor: u16,
}

impl Version {
    /// The one that is spoken here.
    pub const OURS: Version = Version { major: 0, minor: 1 };
}

/// What one side says that it can, where it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Most descriptors that it takes beside one message.
    pub max_msg_fds: Option<u64>,
    /// Most bytes of one transfer.
    pub max_data_xfer_size: Option<u64>,
    /// Most windows at one time.
    pub max_dma_maps: Option<u64>,
    /// Page sizes that windows may be made of, or'ed together.
    pub pgsizes: Option<u64>,
    /// Newest version of the lane that it knows (`vfio_ccw_lane`).
    pub lane: Option<u64>,
    /// A number that the server's process has drawn: devices of one process may share a lane.
    pub lane_server: Option<u64>,
}

/// Why this is no version that can be agreed upon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The message is too short, or much too long.
    #[error("a version message with a payload of {len} bytes: 4 to {MOST_DATA} are taken")]
    Size {
        /// Bytes of its payload.
        len: usize,
    },
    /// Another major version.
    #[error("version {0}.{1} of the protocol is spoken there, and {2}.x here", .theirs.major, .theirs.minor, Version::OURS.major)]
    Major {
        /// The other side's.
        theirs: Version,
    },
    /// The reply's minor version is not one that was offered.
    #[error("the reply says version {0}.{1}, newer than what was offered", .theirs.major, .theirs.minor)]
    Minor {
        /// The other side's.
        theirs: Version,
    },
    /// The data is not what the protocol says.
    #[error("the data of a version message is not as it must be: {what}")]
    Data {
        /// What is wrong with it.
        what: String,
    },
}

impl Capabilities {
    /// The key of the lane among the capabilities. Its value is an object, with the number "version", and the
    /// server's with the number "server".
    const LANE: &str = "vfio_ccw_lane";

    /// What a server answers that has all of `self` to a client that has said `asked`: nothing that was not
    /// asked for.
    pub fn subset_for(&self, asked: &Capabilities) -> Self {
        let both = |ours: Option<u64>, theirs: Option<u64>| theirs.and(ours);
        Capabilities {
            max_msg_fds: both(self.max_msg_fds, asked.max_msg_fds),
            max_data_xfer_size: both(self.max_data_xfer_size, asked.max_data_xfer_size),
            max_dma_maps: both(self.max_dma_maps, asked.max_dma_maps),
            pgsizes: both(self.pgsizes, asked.pgsizes),
            lane: self.lane.zip(asked.lane).map(|(ours, theirs)| ours.min(theirs)),
            lane_server: both(self.lane_server, asked.lane),
        }
    }

    /// The payload of a version message.
    pub fn to_payload(&self, version: Version) -> Vec<u8> {
        let mut all = Map::new();
        let numbers = [
            ("max_msg_fds", self.max_msg_fds),
            ("max_data_xfer_size", self.max_data_xfer_size),
            ("max_dma_maps", self.max_dma_maps),
            ("pgsizes", self.pgsizes),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                all.insert(name.to_owned(), number.into());
            }
        }
        if let Some(version) = self.lane {
            let mut lane = Map::new();
            lane.insert("version".to_owned(), version.into());
            if let Some(server) = self.lane_server {
                lane.insert("server".to_owned(), server.into());
            }
            all.insert(Capabilities::LANE.to_owned(), lane.into());
        }
        let mut payload = Vec::new();
        payload.extend(version.major.to_ne_bytes());
        payload.extend(version.minor.to_ne_bytes());
        payload.extend(json!({ "capabilities": all }).to_string().into_bytes());
        payload.push(0);
        payload
    }

    /// Reads the payload of a version message. What is not known here is passed over.
    ///
    /// # Errors
    ///
    /// [`VersionError::Size`], [`VersionError::Major`] or [`VersionError::Data`].
    pub fn read(payload: &[u8]) -> Result<(Version, Self), VersionError> {
        let len = payload.len();
        let [major0, major1, minor0, minor1, data @ ..] = payload else {
            return Err(VersionError::Size { len });
        };
        if len > MOST_DATA {
            return Err(VersionError::Size { len });
        }
        let version = Version {
            major: u16::from_ne_bytes([*major0, *major1]),
            minor: u16::from_ne_bytes([*minor0, *minor1]),
        };
        if version.major != Version::OURS.major {
            return Err(VersionError::Major { theirs: version });
        }
        Ok((version, Capabilities::of_data(data)?))
    }

    fn of_data(data: &[u8]) -> Result<Self, VersionError> {
        let wrong = |what: String| VersionError::Data { what };
        // Optional, and ended by a NUL where it is there. Some forget that.
        let text = data.strip_suffix(&[0]).unwrap_or(data);
        if text.is_empty() {
            return Ok(Capabilities::default());
        }
        let value: Value =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        let Value::Object(value) = value else {
            return Err(wrong("it is no JSON object".to_owned()));
        };
        let all = match value.get("capabilities") {
            None | Some(Value::Null) => return Ok(Capabilities::default()),
            Some(Value::Object(all)) => all,
            Some(_) => return Err(wrong("\"capabilities\" is no object".to_owned())),
        };
        let number = |within: &Map<String, Value>, name: &str| match within.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(format!("\"{name}\" is no number"))),
            },
        };
        let (lane, lane_server) = match all.get(Capabilities::LANE) {
            Some(Value::Object(lane)) => (number(lane, "version")?, number(lane, "server")?),
            _ => (None, None),
        };
        Ok(Capabilities {
            max_msg_fds: number(all, "max_msg_fds")?,
            max_data_xfer_size: number(all, "max_data_xfer_size")?,
            max_dma_maps: number(all, "max_dma_maps")?,
            pgsizes: number(all, "pgsizes")?,
            lane,
            lane_server,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(data: &str) -> Vec<u8> {
        [&[0, 0, 0, 0], data.as_bytes()].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let all = Capabilities {
            max_msg_fds: Some(1),
            max_data_xfer_size: Some(1 << 20),
            max_dma_maps: Some(65_535),
            pgsizes: Some(4096),
            lane: Some(1),
            lane_server: Some(u64::MAX),
        };
        let without = Capabilities { lane: None, lane_server: None, ..all };
        for said in [Capabilities::default(), all, without] {
            let payload = said.to_payload(Version::OURS);
            assert_eq!(payload.last(), Some(&0));
            assert_eq!(Capabilities::read(&payload), Ok((Version::OURS, said)));
        }
    }

    #[test]
    fn data_is_optional_and_unknown_names_are_passed_over() {
        let nothing = Ok((Version { major: 0, minor: 0 }, Capabilities::default()));
        for data in [
            "",
            "\0",
            "{}\0",
            "{}",
            "{\"capabilities\":null}\0",
            "{\"capabilities\":{\"twin_socket\":{\"supported\":true},\"vfio_ccw_lane\":7}}\0",
        ] {
            assert_eq!(Capabilities::read(&payload(data)), nothing, "{data}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for data in [
            "{",
            "7\0",
            "{\"capabilities\":[]}\0",
            "{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            "{\"capabilities\":{\"pgsizes\":\"4k\"}}\0",
            "{}\0\0",
        ] {
            let read = Capabilities::read(&payload(data));
            assert!(matches!(read, Err(VersionError::Data { .. })), "{data}: {read:?}");
        }
        // Nested so deeply that a careless reader would run out of stack.
        let deep = payload(&"[".repeat(60_000));
        assert!(matches!(Capabilities::read(&deep), Err(VersionError::Data { .. })));
        assert_eq!(Capabilities::read(&[0; 3]), Err(VersionError::Size { len: 3 }));
        let long = vec![b' '; MOST_DATA + 1];
        assert!(matches!(Capabilities::read(&long), Err(VersionError::Size { .. })));
        let theirs = Version { major: 1, minor: 7 };
        let other = Capabilities::default().to_payload(theirs);
        assert_eq!(Capabilities::read(&other), Err(VersionError::Major { theirs }));
    }

    #[test]
    fn a_server_answers_what_was_asked_for() {
        let server = Capabilities {
            max_msg_fds: Some(1),
            max_dma_maps: Some(65_535),
            lane: Some(1),
            ..Capabilities::default()
        };
        let asked =
            Capabilities { max_msg_fds: Some(16), lane: Some(3), ..Capabilities::default() };
        let answer =
            Capabilities { max_msg_fds: Some(1), lane: Some(1), ..Capabilities::default() };
        assert_eq!(server.subset_for(&asked), answer);
        assert_eq!(server.subset_for(&Capabilities::default()), Capabilities::default());
    }
}
