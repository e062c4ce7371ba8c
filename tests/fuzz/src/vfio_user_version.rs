//! The payload of a vfio-user version message: read or refused, and what is read can be written and read again.

use vfio_ccw::vfio_user::Capabilities;

/// One case: the payload.
pub fn run(bytes: &[u8]) {
    match Capabilities::read(bytes) {
        Ok((version, read)) => {
            assert_eq!(Capabilities::read(&read.to_payload(version)), Ok((version, read)));
            assert_eq!(read.subset_for(&read), read);
            let nothing = Capabilities::default();
            assert_eq!(read.subset_for(&nothing), nothing);
            assert_eq!(nothing.subset_for(&read), nothing);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 500, "{text}");
        }
    }
}
