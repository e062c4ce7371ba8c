//! File operations through the shard's tokio-uring runtime.
//!
//! The crate's own file type allocates iovecs on each call and wants to own plain buffers, so the
//! operations are built here and go in through its public one-shot interface: no allocation, and
//! the spans belong to the runtime until the kernel is done, also if the future is dropped.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, types};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::workers::Job;
use super::{Direction, Spans};

/// Runs one operation at `offset`. Must be called on a tokio-uring runtime.
pub(super) async fn run(
    spans: Box<Spans>,
    job: Job,
    offset: u64,
) -> (io::Result<usize>, Box<Spans>) {
    let fd = types::Fd(spans.volume().as_raw_fd());
    let iovecs = spans.remaining();
    let (list, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    let entry = match (job, iovecs) {
        // One piece needs no list: the kernel copies nothing in.
        (Job::Transfer(Direction::Read), [one]) => {
            opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Job::Transfer(Direction::Write), [one]) => {
            opcode::Write::new(fd, one.iov_base.cast_const().cast(), one.iov_len as u32)
                .offset(offset)
                .build()
        }
        (Job::Transfer(Direction::Read), _) => {
            opcode::Readv::new(fd, list, count).offset(offset).build()
        }
        (Job::Transfer(Direction::Write), _) => {
            opcode::Writev::new(fd, list, count).offset(offset).build()
        }
        (Job::Zero(bytes), _) => {
            opcode::Fallocate::new(fd, bytes).offset(offset).mode(super::workers::PUNCH).build()
        }
    };
    UnsubmittedOneshot::new(spans, Moved, entry).submit().await
}

struct Moved;

impl OneshotOutputTransform for Moved {
    type Output = (io::Result<usize>, Box<Spans>);
    type StoredData = Box<Spans>;

    fn transform_oneshot_output(self, spans: Box<Spans>, entry: cqueue::Entry) -> Self::Output {
        let result = entry.result();
        let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        (moved, spans)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spans::tests::fixture;
    use super::*;
    use crate::volume::FileIo;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn transfers_and_zeroing_reach_the_file() {
        let Ok(runtime) = tokio_uring::Runtime::new(&tokio_uring::builder()) else {
            println!("SKIPPED: io_uring is refused here");
            return;
        };
        let (file, map, spans) = fixture(8);
        let in_flight = Rc::new(Cell::new(0));
        let mut io = FileIo::new(spans, None, in_flight.clone());
        let host = map.regions()[0].host();
        runtime.block_on(async {
            map.write(0, &[7; 1024]);
            io.spans().unwrap().push(host.part(0, 512).unwrap());
            io.spans().unwrap().push(host.part(512, 512).unwrap());
            io.transfer(Direction::Write, 512).await.unwrap();
            io.spans().unwrap().clear();
            for piece in [0x2000, 0x3000, 0x4000] {
                io.spans().unwrap().push(host.part(piece, 512).unwrap());
            }
            io.transfer(Direction::Read, 1024).await.unwrap();
            io.zero(512, 512).await.unwrap();
            io.spans().unwrap().clear();
            io.spans().unwrap().push(host.part(0, 1024).unwrap());
            let beyond = io.transfer(Direction::Read, 8 * 512 - 512).await.unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        });
        let mut byte = [9];
        map.read(0x2000, &mut byte);
        assert_eq!(byte, [7]);
        map.read(0x3000, &mut byte);
        assert_eq!(byte, [0]);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!((bytes[512], bytes[1024]), (0, 7));
        assert_eq!(in_flight.get(), 0);
    }
}
