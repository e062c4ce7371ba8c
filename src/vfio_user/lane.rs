//! What goes over a lane: orders of the client's, and the server's reports.
//!
//! The memory and its protocol are [`vfio_ccw_queues::lane`]: two tracks of entries, one behind the other, the
//! first from the client to the server. Here is what stands in an entry, in version 1.
//!
//! | in the head | |
//! |---|---|
//! | bits 0-15 | number of the device on the lane |
//! | bits 16-23 | what it is: [`Kind`] |
//! | bits 24-31 | zero |
//!
//! | bytes of the body | order | report |
//! |---|---|---|
//! | 0-3 | tag, chosen by the client | tag of what it is about, or 0 |
//! | 4-7 | zero | errno of a refusal, or 0 |
//! | 8-19 | ORB | SCSW |
//! | 20-39 | zero | ESW |
//! | 40-55 | zero | zero |
//!
//! The ECW of a report with sense stands in bytes 0-31 of the next entry. Tags and errno are in the byte order
//! of the machine, ORB and status big-endian.

use vfio_ccw_queues::lane::Entry;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::architecture::{Ecw, Esw, Function, IrbHead, Orb, Scsw};
use crate::backend::Errno;
use crate::channel_subsystem::Entry as Way;

/// Version of what this file describes.
pub(crate) const VERSION: u64 = 1;

/// Entries of each track that a client makes.
pub(crate) const ENTRIES: u32 = 4096;

/// Devices that share a lane at most. So none of them finds it full: each has an order or two on the way, and
/// its reports are not many more.
pub(crate) const MOST_DEVICES: usize = ENTRIES as usize / 16;

/// Where the second track begins, from the beginning of the lane.
pub(crate) const fn second_track(entries: u32) -> usize {
    vfio_ccw_queues::lane::Track::bytes(entries).next_multiple_of(4096)
}

/// Bytes of a lane.
pub(crate) const fn bytes(entries: u32) -> usize {
    2 * second_track(entries)
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Start = 1,
    Resume = 2,
    Halt = 3,
    Clear = 4,
    Refusal = 5,
    Status = 6,
    StatusWithSense = 7,
    Sense = 8,
}

impl Kind {
    fn head(self, number: u16) -> u32 {
        u32::from(number) | (self as u32) << 16
    }

    fn of(head: u32) -> Option<(Self, u16)> {
        let kind = match head >> 16 {
            1 => Kind::Start,
            2 => Kind::Resume,
            3 => Kind::Halt,
            4 => Kind::Clear,
            5 => Kind::Refusal,
            6 => Kind::Status,
            7 => Kind::StatusWithSense,
            8 => Kind::Sense,
            _ => return None,
        };
        Some((kind, head as u16))
    }
}

/// What the client wants of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Start(Orb, Way),
    Perform(Function),
}

/// What the server says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The order was not carried out.
    Refused(Errno),
    /// There is status.
    Status(IrbHead),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct OrderBody {
    tag: u32,
    zero: u32,
    orb: Orb,
    rest: [u8; 36],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ReportBody {
    tag: u32,
    errno: i32,
    scsw: Scsw,
    esw: Esw,
    rest: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SenseBody {
    ecw: Ecw,
    rest: [u8; 24],
}

/// The entry with an order.
#[inline]
pub(crate) fn order(number: u16, tag: u32, order: &Order) -> Entry {
    let (kind, orb) = match order {
        Order::Start(orb, Way::Start) => (Kind::Start, *orb),
        Order::Start(orb, Way::Resume) => (Kind::Resume, *orb),
        Order::Perform(Function::Halt) => (Kind::Halt, Orb::default()),
        Order::Perform(Function::Clear) => (Kind::Clear, Orb::default()),
    };
    let body = OrderBody { tag, zero: 0, orb, rest: [0; 36] };
    Entry { head: kind.head(number), body: transmute!(body) }
}

/// The order in an entry: device, tag, and what; `None` where it is none.
#[inline]
pub(crate) fn read_order(entry: &Entry) -> Option<(u16, u32, Order)> {
    let (kind, number) = Kind::of(entry.head)?;
    let body: OrderBody = transmute!(entry.body);
    let order = match kind {
        Kind::Start => Order::Start(body.orb, Way::Start),
        Kind::Resume => Order::Start(body.orb, Way::Resume),
        Kind::Halt => Order::Perform(Function::Halt),
        Kind::Clear => Order::Perform(Function::Clear),
        _ => return None,
    };
    Some((number, body.tag, order))
}

/// The entries with a report: one or two.
#[inline]
pub(crate) fn report(number: u16, tag: u32, report: &Report) -> (Entry, Option<Entry>) {
    let (kind, errno, irb) = match report {
        Report::Refused(errno) => (Kind::Refusal, errno.0, &IrbHead::default()),
        Report::Status(irb) if irb.ecw != [0; 32] => (Kind::StatusWithSense, 0, irb),
        Report::Status(irb) => (Kind::Status, 0, irb),
    };
    let body = ReportBody { tag, errno, scsw: irb.scsw, esw: irb.esw, rest: [0; 16] };
    let first = Entry { head: kind.head(number), body: transmute!(body) };
    let second = (kind == Kind::StatusWithSense).then(|| {
        let body = SenseBody { ecw: irb.ecw, rest: [0; 24] };
        Entry { head: Kind::Sense.head(number), body: transmute!(body) }
    });
    (first, second)
}

/// Whether the report in an entry goes on in the next one, which may come a moment later.
#[inline]
pub(crate) fn has_second(entry: &Entry) -> bool {
    Kind::of(entry.head).is_some_and(|(kind, _)| kind == Kind::StatusWithSense)
}

/// The report in an entry, or two: device, tag, and what; `None` where it is none.
#[inline]
pub(crate) fn read_report(entry: &Entry, second: Option<&Entry>) -> Option<(u16, u32, Report)> {
    let (kind, number) = Kind::of(entry.head)?;
    let body: ReportBody = transmute!(entry.body);
    let mut irb = IrbHead { scsw: body.scsw, esw: body.esw, ecw: [0; 32] };
    match kind {
        Kind::Refusal => return Some((number, body.tag, Report::Refused(Errno(body.errno)))),
        Kind::Status => {}
        Kind::StatusWithSense => {
            let second = second.filter(|it| Kind::of(it.head) == Some((Kind::Sense, number)))?;
            let sense: SenseBody = transmute!(second.body);
            irb.ecw = sense.ecw;
        }
        _ => return None,
    }
    Some((number, body.tag, Report::Status(irb)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::ScswFlags;

    #[test]
    fn orders_are_read_as_they_were_written() {
        let orb = Orb::new(0x1234_5678).with_intparm(7);
        for what in [
            Order::Start(orb, Way::Start),
            Order::Start(orb, Way::Resume),
            Order::Perform(Function::Halt),
            Order::Perform(Function::Clear),
        ] {
            let entry = order(513, 0xdead_beef, &what);
            assert_eq!(read_order(&entry), Some((513, 0xdead_beef, what)));
            assert_eq!(read_report(&entry, None), None);
        }
        let entry = order(1, 2, &Order::Start(orb, Way::Start));
        assert_eq!(entry.head, 0x0001_0001);
        assert_eq!(entry.body.as_bytes()[8..20], *orb.as_bytes());
        for head in [0, 0x0009_0000, 0x0101_0000, u32::MAX] {
            assert_eq!(read_order(&Entry { head, ..entry }), None, "{head:#x}");
        }
    }

    #[test]
    fn reports_are_read_as_they_were_written() {
        let scsw = Scsw::new(ScswFlags::STATUS_PENDING).with_cpa(0x1008);
        let plain = IrbHead { scsw, ..IrbHead::default() };
        let sense: Vec<u8> = (1..=32).collect();
        for what in [
            Report::Refused(Errno::BUSY),
            Report::Status(plain),
            Report::Status(plain.with_sense(&sense)),
        ] {
            let (first, second) = report(9, 77, &what);
            let has_sense = matches!(what, Report::Status(irb) if !irb.sense().is_empty());
            assert_eq!((second.is_some(), has_second(&first)), (has_sense, has_sense));
            assert_eq!(read_report(&first, second.as_ref()), Some((9, 77, what)));
            assert_eq!(read_order(&first), None);
        }
        let (first, second) = report(9, 77, &Report::Status(plain.with_sense(&sense)));
        assert_eq!(read_report(&first, None), None, "the sense is missing");
        let other = second.map(|second| Entry { head: second.head + 1, ..second });
        assert_eq!(read_report(&first, other.as_ref()), None, "it is another device's");
    }

    #[test]
    fn a_lane_is_two_tracks_on_pages_of_their_own() {
        assert_eq!(second_track(2), 4096);
        assert_eq!(bytes(ENTRIES), 2 * (4096 * 64 + 4096));
    }
}
