//! Programs for a disk, through a whole service: rings, pool, translation, channel and file.
//!
//! Whatever the guest asks for, each start has one end, the volume keeps its length, and a volume
//! that is opened read-only its bytes too.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::architecture::{Orb, OrbFlags};
use vfio_ccw::volume::{BLOCK, Volume};
use vfio_ccw::{Completions, DeviceSpec, Driver, DriverChoice, Service, Subchannel};

use crate::case::{self, CaseBytes};
use crate::guest::Guest;
use crate::input::Input;
use crate::reachable::Reachable;
use crate::status;

/// Bytes before the first piece of memory; the last of them are the ORB.
pub const HEADER: usize = 13;

/// Blocks of the volume.
const BLOCKS: u64 = 64;
/// Nothing takes this long: what does was lost.
const STALL: Duration = Duration::from_secs(20);

/// A service with two disks on one volume, the second read-only. Fields drop in this order: the
/// service before the guest's memory.
struct Rig {
    disks: [(Subchannel, Completions); 2],
    _service: Service,
    guest: Guest,
    image: File,
    contents: Vec<u8>,
    starts: u64,
}

impl Rig {
    fn new() -> Self {
        let guest = Guest::new();
        let memfd = rustix::fs::memfd_create("volume", rustix::fs::MemfdFlags::CLOEXEC);
        let mut image = File::from(memfd.expect("a memfd"));
        let contents: Vec<u8> = (0..BLOCKS * BLOCK).map(|at| (at / 8) as u8 ^ 0xa5).collect();
        image.write_all(&contents).expect("room for the volume");
        let path = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
        // One way of file I/O on every machine.
        let service = Service::builder()
            .driver(DriverChoice::Only(Driver::Epoll))
            .build(guest.memory.clone())
            .expect("the service starts");
        let disks = [false, true].map(|read_only| {
            let volume = Arc::new(Volume::open(&path, read_only).expect("whole blocks"));
            let (delivery, completions) = Completions::ring(8).expect("an eventfd");
            let disk = service.attach(DeviceSpec::Fba(volume), delivery).expect("room for a disk");
            (disk, completions)
        });
        Rig { guest, disks, image, contents, starts: 0, _service: service }
    }

    fn run(&mut self, bytes: &[u8]) {
        let mut input = Input::new(bytes);
        let read_only = input.u8() & 1 == 1;
        let orb = orb(input.array());
        self.guest.clear();
        case::pieces(&mut input, &mut self.guest);
        let reached = Reachable::of(&orb, &self.guest);
        if reached.loops || reached.cut_off {
            // Thousands of transfers in one case: loops are for the targets without files.
            return;
        }
        self.starts += 1;
        let (disk, completions) = &mut self.disks[usize::from(read_only)];
        disk.submit(&orb, self.starts).expect("an ORB that passes the checks, and room for it");
        let (mut intermediate, mut ended) = (Vec::new(), Vec::new());
        while ended.is_empty() {
            assert!(completions.wait(Some(STALL)).expect("poll"), "{orb:?} never ended");
            completions.reap(64, |completion| {
                assert_eq!(completion.user_data, self.starts);
                assert!(ended.is_empty(), "something came after the end");
                match completion.irb.scsw.is_final() {
                    true => ended.push(completion.irb),
                    false => intermediate.push(completion.irb),
                }
            });
        }
        assert_eq!(completions.reap(1, |_| {}), 0, "one start, one end");
        let irb = ended[0];
        let prefetched = orb.flags().contains(OrbFlags::PREFETCH);
        let reached = prefetched.then_some(&reached);
        for irb in &intermediate {
            status::check_intermediate(&orb, irb, reached);
        }
        status::check_end(&orb, &irb, reached);
        self.check_volume(read_only);
        self.guest.check_fences();
    }

    fn check_volume(&mut self, read_only: bool) {
        use std::os::unix::fs::FileExt;
        let len = self.image.metadata().expect("fstat").len();
        assert_eq!(len, BLOCKS * BLOCK, "the volume has its length");
        let mut now = vec![0; self.contents.len()];
        self.image.read_exact_at(&mut now, 0).expect("all of it is there");
        if now != self.contents {
            assert!(!read_only, "a read-only volume was written");
            self.image.seek(SeekFrom::Start(0)).expect("a file");
            self.image.write_all(&self.contents).expect("room for the volume");
        }
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// One case: which disk, an ORB, memory.
pub fn run(bytes: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.run(bytes));
}

/// A program that is suspended would wait for its guest.
fn orb(bytes: [u8; 12]) -> Orb {
    let orb = case::orb(bytes);
    orb.with_flags(orb.flags() - OrbFlags::SUSPEND_CONTROL)
}

/// The beginning of a case, as seeds write it.
pub fn case(read_only: bool, orb: &Orb) -> CaseBytes {
    let mut bytes = vec![u8::from(read_only)];
    bytes.extend(zerocopy::IntoBytes::as_bytes(orb));
    CaseBytes(bytes)
}
