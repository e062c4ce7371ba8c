//! Bytes of a vfio-user connection, whatever they are and however they arrive: messages are the same.

use std::fs::File;
use std::os::fd::OwnedFd;

use vfio_ccw::vfio_user::{FrameError, HEADER, Header, Inbox, MOST_FILES, MOST_PAYLOAD};
use zerocopy::IntoBytes;

use crate::input::Input;

/// What came of bytes: of each message its header, payload, and descriptors; and what ended it.
type Messages = (Vec<(Vec<u8>, Vec<u8>, usize, bool)>, Option<FrameError>);

/// One case: eight pairs of how many bytes arrive at once and how many descriptors beside them, then the bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let pieces = input.array::<16>();
    let bytes = input.rest();
    let whole = feed(bytes, std::iter::repeat((usize::MAX, 0)));
    let pieces = pieces.as_chunks::<2>().0;
    let sizes = pieces.iter().cycle().map(|[size, _]| (usize::from(*size).max(1), 0));
    assert_eq!(feed(bytes, sizes), whole);
    // With descriptors too, which are nobody's reason to frame another way.
    let both = |[size, files]: &[u8; 2]| (usize::from(*size).max(1), usize::from(files % 12));
    let (messages, end) = feed(bytes, pieces.iter().cycle().map(both));
    assert_eq!(end, whole.1);
    for ((header, payload, files, _), expected) in messages.iter().zip(&whole.0) {
        assert_eq!((header, payload), (&expected.0, &expected.1));
        assert!(*files <= MOST_FILES);
    }
    assert_eq!(messages.len(), whole.0.len());
}

fn feed(mut bytes: &[u8], arriving: impl Iterator<Item = (usize, usize)>) -> Messages {
    let (mut inbox, mut messages) = (Inbox::default(), Vec::new());
    for (size, files) in arriving {
        if bytes.is_empty() {
            break;
        }
        let space = inbox.space();
        assert!(!space.is_empty() && space.len() <= MOST_PAYLOAD);
        let now = space.len().min(size).min(bytes.len());
        let (piece, rest) = bytes.split_at(now);
        space[..now].copy_from_slice(piece);
        bytes = rest;
        let files: Vec<OwnedFd> = (0..files).map(|_| null()).collect();
        match inbox.filled(now, files, false) {
            Ok(false) => assert!(!inbox.is_empty()),
            Ok(true) => {
                let message = inbox.take();
                let Header { size, .. } = message.header;
                assert_eq!(message.payload.len() + HEADER, size as usize);
                let header = message.header.as_bytes().to_vec();
                let payload = message.payload.to_vec();
                messages.push((header, payload, message.files.len(), message.has_lost_files));
                assert!(inbox.is_empty());
            }
            Err(error) => return (messages, Some(error)),
        }
    }
    (messages, None)
}

/// Some descriptor.
fn null() -> OwnedFd {
    File::open("/dev/null").expect("there is one").into()
}
