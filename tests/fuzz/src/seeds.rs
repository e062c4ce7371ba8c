//! The seeds: cases of each kind that a guest or user can bring, for fuzzers to start from.
//!
//! `cargo run --example write_seeds` writes them to `seeds/`.

use vfio_ccw::architecture::{Ccw, CcwFlags, Midaw, MidawFlags, Orb, OrbFlags, command};

use crate::case::{CaseBytes, Header};
use crate::{fba_disk, policy};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const CD: CcwFlags = CcwFlags::CHAIN_DATA;
const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
const SKIP: CcwFlags = CcwFlags::SKIP;
const PCI: CcwFlags = CcwFlags::PROGRAM_CONTROLLED;
const IDA: CcwFlags = CcwFlags::INDIRECT;
const S: CcwFlags = CcwFlags::SUSPEND;
const MIDA: CcwFlags = CcwFlags::MODIFIED_INDIRECT;

/// Steps of a device's script.
mod step {
    /// Moves all there is.
    pub(super) const ALL: u8 = 0x00;
    /// Moves all there is and wants one more byte.
    pub(super) const MORE: u8 = 0x01;
    /// Moves 16 bytes.
    pub(super) const SOME: u8 = 0x04;
    /// Ends at once.
    pub(super) const IMMEDIATE: u8 = 0x08;
    /// Unit check after all there is.
    pub(super) const UNIT_CHECK: u8 = 0x10;
    /// Status modifier where the command is a search.
    pub(super) const FOUND: u8 = 0x20;
    /// Everything twice.
    pub(super) const AGAIN: u8 = 0x40;
}

/// Where programs stand, and their lists and data.
const AT: u32 = 0x1000;
const LIST: u32 = 0x2000;
const DATA: u32 = 0x4000;

/// A seed: its target, its name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// All seeds.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for target in ["channel_program", "unfetched_program"] {
        seeds.extend(programs().into_iter().map(|(name, case)| (target, name, case.0)));
    }
    seeds.extend(disks().into_iter().map(|(name, case)| ("fba_disk", name, case.0)));
    seeds.extend(policies().into_iter().map(|(name, case)| ("policy", name, case.0)));
    seeds.extend(regions().into_iter().map(|(name, bytes)| ("io_region", name, bytes)));
    seeds.extend(blocks().into_iter().map(|(name, bytes)| ("decode", name, bytes)));
    seeds.extend(answers().into_iter().map(|(name, bytes)| ("vfio_user", name, bytes)));
    seeds.extend(clients().into_iter().map(|(name, bytes)| ("vfio_user_server", name, bytes)));
    seeds.extend(servers().into_iter().map(|(name, it)| ("vfio_user_client", name, it)));
    seeds.extend(streams().into_iter().map(|(name, bytes)| ("vfio_user_inbox", name, bytes)));
    seeds.extend(versions().into_iter().map(|(name, it)| ("vfio_user_version", name, it)));
    seeds.extend(tracks().into_iter().map(|(name, bytes)| ("lane", name, bytes)));
    seeds.extend(words().into_iter().map(|(name, text)| ("options", name, text.into())));
    seeds
}

fn ccw(code: u8, address: u32, count: u16, flags: CcwFlags) -> Ccw {
    Ccw::new(code, address, count).with(flags)
}

fn tic(address: u32) -> Ccw {
    Ccw::new(command::TIC, address, 0)
}

fn orb(cpa: u32, more: OrbFlags) -> Orb {
    let orb = Orb::new(cpa);
    orb.with_flags(orb.flags() | more)
}

fn programs() -> Vec<(&'static str, CaseBytes)> {
    let none = CcwFlags::empty();
    let plain = Header::default();
    let script = |steps: &[u8]| {
        let mut script = [0; 8];
        script[..steps.len()].copy_from_slice(steps);
        Header { script, ..plain }
    };
    let format_0 = Orb::new(AT).with_flags(OrbFlags::PREFETCH | OrbFlags::FORMAT_2_IDAWS);
    let idaws_1 = Orb::new(AT).with_flags(OrbFlags::PREFETCH | OrbFlags::FORMAT_1);
    let blocks_2k = orb(AT, OrbFlags::IDAW_2K);
    let suspends = orb(AT, OrbFlags::SUSPEND_CONTROL);
    let midaws = orb(AT, OrbFlags::MIDAW);
    let midaw = |address, count, flags| Midaw::new(address, count).with(flags).to_bytes();
    let key_5 = {
        let bytes: [u8; 12] = zerocopy::transmute!(Orb::new(AT));
        let mut bytes = bytes;
        bytes[4] |= 0x50;
        crate::case::orb(bytes)
    };
    vec![
        (
            "sense-id",
            script(&[3])
                .case(&Orb::new(AT))
                .ccws(AT.into(), &[ccw(command::SENSE_ID, DATA, 7, SLI)]),
        ),
        (
            "read-with-idal",
            plain
                .case(&Orb::new(AT))
                .ccws(AT.into(), &[ccw(0x02, LIST, 6000, IDA)])
                .idaws(LIST.into(), &[0x4800, 0x7000]),
        ),
        (
            "write-with-2k-blocks",
            script(&[step::AGAIN])
                .case(&blocks_2k)
                .ccws(AT.into(), &[ccw(0x01, LIST, 5000, IDA)])
                .idaws(LIST.into(), &[0x4400, 0x1_0000, 0x8000_0800, 0x6000])
                .put(0x4400, &[0x77; 200]),
        ),
        (
            "read-with-format-1-idaws",
            plain
                .case(&idaws_1)
                .ccws(AT.into(), &[ccw(0x02, LIST, 3000, IDA)])
                .put(LIST.into(), &[0, 0, 0x47, 0, 0, 0, 0x50, 0]),
        ),
        (
            "search-loop",
            script(&[step::IMMEDIATE, step::SOME, step::SOME | step::FOUND, step::ALL])
                .case(&Orb::new(AT))
                .ccws(
                    AT.into(),
                    &[
                        ccw(0x07, DATA, 6, CC | SLI),
                        ccw(0x31, DATA, 16, CC | SLI),
                        tic(AT + 8),
                        ccw(0x06, DATA + 0x100, 512, SLI),
                    ],
                ),
        ),
        (
            "data-chain",
            script(&[step::ALL])
                .case(&Orb::new(AT))
                .ccws(
                    AT.into(),
                    &[
                        ccw(0x02, DATA, 24, CD),
                        ccw(0x00, DATA + 0x800, 100, CD | SKIP),
                        ccw(0x77, LIST, 4200, IDA | CC),
                        ccw(command::NOP, 0, 1, none),
                    ],
                )
                .idaws(LIST.into(), &[0x8ff8, 0x9000, 0xa000]),
        ),
        (
            "midaws-as-blocks",
            plain
                .case(&midaws)
                .ccws(AT.into(), &[ccw(0x06, LIST, 0x1100, MIDA)])
                .put(LIST.into(), &midaw(0x4f80, 0x80, MidawFlags::empty()))
                .put(u64::from(LIST) + 16, &midaw(0x6000, 0x1000, MidawFlags::empty()))
                .put(u64::from(LIST) + 32, &midaw(0x5000, 0x80, MidawFlags::LAST)),
        ),
        (
            "midaws-in-pieces",
            plain
                .case(&midaws)
                .ccws(AT.into(), &[ccw(0x02, LIST, 0x30, MIDA | CC), ccw(0x03, 0, 0, none)])
                .put(LIST.into(), &midaw(0x4010, 0x10, MidawFlags::SKIP))
                .put(u64::from(LIST) + 16, &midaw(0x5008, 0x20, MidawFlags::LAST)),
        ),
        (
            "suspended-and-resumed",
            Header { resumes: 0b0110_1101, ..script(&[step::ALL, step::ALL]) }
                .case(&suspends)
                .ccws(
                    AT.into(),
                    &[
                        ccw(0x02, DATA, 32, CC | PCI),
                        ccw(0x02, DATA + 32, 32, CC | S | PCI),
                        ccw(0x01, DATA, 64, S),
                    ],
                ),
        ),
        (
            "interrupting-itself",
            script(&[step::IMMEDIATE, step::ALL, step::MORE])
                .case(&orb(AT, OrbFlags::SUPPRESS_LENGTH))
                .ccws(
                    AT.into(),
                    &[
                        ccw(command::NOP, 0, 1, CC | PCI),
                        ccw(0x02, DATA, 64, CD | PCI),
                        ccw(0x02, DATA + 64, 64, CC | PCI | SLI),
                        ccw(0x02, DATA + 128, 64, PCI),
                    ],
                ),
        ),
        (
            "format-0",
            script(&[step::IMMEDIATE, step::ALL])
                .case(&format_0)
                .ccws_0(
                    AT.into(),
                    &[ccw(0x03, 0, 1, CC), ccw(0x58, 0x1_0000, 7, CC), ccw(0x99, 0, 1, none)],
                )
                .ccws_0(0x1_0000, &[ccw(0x02, 0xff_fff0, 32, none)]),
        ),
        (
            "many-segments",
            script(&[step::ALL, step::SOME])
                .case(&Orb::new(0x7fff_fff0))
                .ccws(0x7fff_fff0, &[ccw(0x01, DATA, 16, CC), tic(0x9ff8)])
                .ccws(0x9ff8, &[ccw(0x02, 0x9ff0, 8, CC)])
                .ccws(0xa000, &[ccw(0x02, DATA, 32, CC | SLI), tic(0x1_0000)])
                .ccws(0x1_0000, &[ccw(0x02, DATA, 8, CC), ccw(0x02, 0, 8, none)]),
        ),
        (
            "read-backward",
            script(&[step::ALL, step::ALL])
                .case(&Orb::new(AT))
                .ccws(AT.into(), &[ccw(0x0c, DATA + 0x7f, 128, CC), ccw(0x0c, LIST, 4100, IDA)])
                .idaws(LIST.into(), &[0x5003, 0x4fff, 0x6fff]),
        ),
        (
            "keys",
            Header { options: 1, keys: 0x5a, frames: 0b0100_0000, ..plain }
                .case(&key_5)
                .ccws(AT.into(), &[ccw(0x02, DATA, 0x3000, none)]),
        ),
        (
            "refused-writes",
            Header { options: 0b0010_0100, ..plain }.case(&Orb::new(AT)).ccws(
                AT.into(),
                &[ccw(0x42, DATA, 512, CC), ccw(0x41, DATA, 512, CC), ccw(0x03, 0, 0, none)],
            ),
        ),
        (
            "narrow-limits",
            Header { options: 0b1000_0010, ..plain }
                .case(&Orb::new(AT))
                .ccws(AT.into(), &[ccw(0x02, DATA, 0x2000, CC); 10]),
        ),
        (
            "overwrites-itself",
            script(&[step::ALL])
                .case(&Orb::new(AT))
                .ccws(AT.into(), &[ccw(0x02, AT + 8, 8, CC), ccw(0x01, DATA, 8, none)]),
        ),
        (
            "mistakes",
            script(&[step::ALL, step::SOME, step::UNIT_CHECK]).case(&Orb::new(AT)).ccws(
                AT.into(),
                &[ccw(0x02, 0xbff0, 32, CC | SLI), ccw(0x00, DATA, 1, CC), tic(AT + 0x1c), tic(AT)],
            ),
        ),
        (
            "behind-the-end",
            script(&[step::ALL])
                .case(&Orb::new(0x7fff_fff8))
                .ccws(0x7fff_fff8, &[ccw(0x02, 0x7fff_fff0, 32, CC | SLI)]),
        ),
    ]
}

/// Parameters of DEFINE EXTENT and LOCATE of an FBA disk, one behind the other.
fn extent(mask: u8, at: u32, last: u32, operation: u8, blocks: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0] = mask;
    bytes[2..4].copy_from_slice(&512u16.to_be_bytes());
    bytes[4..8].copy_from_slice(&at.to_be_bytes());
    bytes[12..16].copy_from_slice(&last.to_be_bytes());
    bytes[16] = operation;
    bytes[18..20].copy_from_slice(&blocks.to_be_bytes());
    bytes
}

/// DEFINE EXTENT and LOCATE with parameters at [`LIST`], then `rest`.
fn located(rest: &[Ccw]) -> Vec<Ccw> {
    let mut ccws =
        vec![ccw(command::DEFINE_EXTENT, LIST, 16, CC), ccw(command::FBA_LOCATE, LIST + 16, 8, CC)];
    ccws.extend(rest);
    ccws
}

fn disks() -> Vec<(&'static str, CaseBytes)> {
    let none = CcwFlags::empty();
    let start = Orb::new(AT);
    let read = extent(0x40, 4, 15, 6, 3);
    let write = extent(0, 8, 15, 5, 3);
    let unfetched = start.with_flags(start.flags() - OrbFlags::PREFETCH);
    let disk = |read_only, orb: &Orb, parameters: &[u8], rest: &[Ccw]| {
        fba_disk::case(read_only, orb).put(LIST.into(), parameters).ccws(AT.into(), &located(rest))
    };
    vec![
        ("read", disk(false, &start, &read, &[ccw(command::FBA_READ, DATA, 1536, none)])),
        (
            "read-in-pieces",
            disk(
                true,
                &start,
                &read,
                &[
                    ccw(command::FBA_READ, DATA, 100, CD),
                    ccw(0, DATA, 700, CD | SKIP),
                    ccw(0, LIST + 0x100, 736, IDA),
                ],
            )
            .idaws(u64::from(LIST) + 0x100, &[0x5f00, 0x7000]),
        ),
        ("write", disk(false, &start, &write, &[ccw(command::FBA_WRITE, DATA, 1536, none)])),
        ("write-protected", disk(true, &start, &write, &[ccw(command::FBA_WRITE, DATA, 512, SLI)])),
        ("write-a-part", disk(false, &start, &write, &[ccw(command::FBA_WRITE, DATA, 700, SLI)])),
        ("discard", disk(false, &start, &write, &[ccw(command::FBA_WRITE, 0, 0, SLI)])),
        ("unfetched", disk(false, &unfetched, &read, &[ccw(command::FBA_READ, DATA, 1536, none)])),
        (
            "what-it-is",
            fba_disk::case(false, &start).ccws(
                AT.into(),
                &[
                    ccw(command::SENSE_ID, DATA, 7, CC),
                    ccw(command::READ_DEVICE_CHARACTERISTICS, DATA + 8, 32, CC),
                    ccw(command::SENSE, DATA + 64, 24, CC),
                    ccw(0x77, 0, 1, none),
                ],
            ),
        ),
        (
            "behind-the-volume",
            disk(
                false,
                &start,
                &extent(0, 63, 0xffff_ffff, 1, 2),
                &[ccw(command::FBA_WRITE, DATA, 1024, none)],
            ),
        ),
    ]
}

fn policies() -> Vec<(&'static str, CaseBytes)> {
    let none = CcwFlags::empty();
    let start = Orb::new(AT).with_intparm(0x4110_0308);
    let (fba, eckd, tape) = (2, 3, 4);
    let quiet = (0, [0; 16]);
    let inside = extent(0, 8, 15, 5, 3);
    let outside = extent(0, 200, 15, 5, 3);
    let late = {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&outside[..16]);
        (u64::from(LIST), bytes)
    };
    let transfer = located(&[ccw(command::FBA_WRITE, DATA, 1536, none)]);
    let disk = |options, late, parameters: &[u8]| {
        policy::case(options, fba, 0xff, late, &start)
            .put(LIST.into(), parameters)
            .ccws(AT.into(), &transfer)
    };
    let mut tracks = [0; 16];
    tracks[8..12].copy_from_slice(&[0, 1, 0, 0]);
    tracks[12..16].copy_from_slice(&[0, 1, 0, 14]);
    let mut prefix = [0; 28];
    prefix[1] = 0x80;
    prefix[12..].copy_from_slice(&tracks);
    vec![
        ("read-only-disk", disk(1, quiet, &inside)),
        ("inside", disk(4, quiet, &inside)),
        ("outside", disk(4, quiet, &outside)),
        ("changed-when-judged", disk(4 | 8, late, &inside)),
        ("all-rules", disk(7, quiet, &inside)),
        (
            "defined-in-pieces",
            policy::case(4 | 8, fba, 0, late, &start).put(LIST.into(), &inside).ccws(
                AT.into(),
                &[
                    ccw(command::DEFINE_EXTENT, LIST, 8, CD),
                    ccw(0, LIST + 8, 8, CC),
                    ccw(command::FBA_WRITE, DATA, 512, none),
                ],
            ),
        ),
        (
            "defined-through-idaws",
            policy::case(4 | 8, fba, 0, late, &start)
                .put(LIST.into(), &inside)
                .idaws(0x3000, &[LIST.into()])
                .ccws(
                    AT.into(),
                    &[
                        ccw(command::DEFINE_EXTENT, 0x3000, 16, CC | IDA),
                        ccw(command::FBA_LOCATE, LIST + 16, 8, CC),
                        ccw(command::FBA_WRITE, DATA, 512, none),
                    ],
                ),
        ),
        (
            "defined-twice",
            policy::case(4, fba, 0, quiet, &start)
                .put(LIST.into(), &inside)
                .put(0x3000, &outside)
                .ccws(
                    AT.into(),
                    &[
                        ccw(command::DEFINE_EXTENT, LIST, 16, CC),
                        ccw(command::DEFINE_EXTENT, 0x3000, 16, CC),
                        ccw(command::FBA_WRITE, DATA, 512, none),
                    ],
                ),
        ),
        (
            "skipped-definition",
            policy::case(4, eckd, 0, quiet, &start).put(LIST.into(), &tracks).ccws(
                AT.into(),
                &[
                    ccw(0x31, DATA, 5, CC | SLI),
                    ccw(command::DEFINE_EXTENT, LIST, 16, CC),
                    ccw(0x86, DATA, 512, none),
                ],
            ),
        ),
        (
            "tracks",
            policy::case(4, eckd, 0, quiet, &start).put(LIST.into(), &prefix).ccws(
                AT.into(),
                &[ccw(0xe7, LIST, 28, CC), ccw(0x47, DATA, 16, CC), ccw(0x85, DATA, 512, none)],
            ),
        ),
        (
            "tape-marks",
            policy::case(3, tape, 0b1110_1010, quiet, &start)
                .ccws(AT.into(), &[ccw(0x02, DATA, 80, CC | SLI), ccw(0x1f, 0, 1, none)]),
        ),
        (
            "unfetched",
            policy::case(1, fba, 0, quiet, &start.with_flags(OrbFlags::FORMAT_1))
                .put(LIST.into(), &inside)
                .ccws(AT.into(), &transfer),
        ),
    ]
}

fn regions() -> Vec<(&'static str, Vec<u8>)> {
    let start = |orb: &Orb| {
        let mut bytes = vec![4];
        bytes.extend(zerocopy::IntoBytes::as_bytes(orb));
        bytes
    };
    let put = |slot: u16, ccws: &[Ccw]| {
        let mut bytes = vec![7];
        bytes.extend(slot.to_be_bytes());
        bytes.push(ccws.len() as u8 * 8);
        bytes.extend(ccws.iter().flat_map(|ccw| ccw.to_format_1()));
        bytes
    };
    let (run, read) = ([6], [3, 0, 0, 124]);
    // A program at the start of the shadow, where the device finds it at 64 KiB.
    let program = put(
        1,
        &[ccw(0x02, 0x1_0100, 64, CC | IDA | SLI), ccw(command::SENSE_ID, 0x1_0100, 7, IDA)],
    );
    let idaw = {
        let mut bytes = vec![7, 0, 0x20 * 2 + 1, 8];
        bytes.extend((vfio_ccw::GUEST_IOVA + 0x4000).to_be_bytes());
        bytes
    };
    let shadow = Orb::new(0x1_0000);
    let unfetched = Orb::new(0x1000).with_flags(OrbFlags::FORMAT_1);
    let halt = [0, 12, 4, 0, 0, 0x20, 0];
    let left = [0, 120, 4, 0xfb, 0xff, 0xff, 0xff];
    let transport = shadow.with_flags(OrbFlags::TRANSPORT_MODE);
    vec![
        ("start-run-read", [&program[..], &idaw, &start(&shadow), &run, &read].concat()),
        ("start-twice", [&start(&shadow)[..], &start(&shadow), &read, &run, &read].concat()),
        (
            "unfetched",
            [
                &put(0x200, &[ccw(command::SENSE_ID, 0x4000, 7, CcwFlags::empty())])[..],
                &start(&unfetched),
                &run,
                &read,
            ]
            .concat(),
        ),
        ("halt", [&halt[..], &read, &run].concat()),
        ("ret-code-left", [&left[..], &read].concat()),
        ("transport-mode", [&start(&transport)[..], &read].concat()),
        (
            "outside",
            vec![2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 1, 2, 3, 4, 3, 0, 121, 4],
        ),
        ("byte-by-byte", vec![0, 12, 1, 0, 1, 13, 1, 0, 0, 14, 1, 0x40, 6, 3, 0, 24, 96]),
    ]
}

/// Calls with the answers of a device: honest ones, one with a byte changed, refusals, bytes, silence.
fn answers() -> Vec<(&'static str, Vec<u8>)> {
    let refusal = |errno: u8| [2, errno, 0, 0, 0];
    let mut bytes = vec![0x01, 3];
    bytes.extend((0..40).map(|byte| byte ^ 0x5a));
    vec![
        ("honest", vec![0x03, 0, 0, 0, 0x83, 0, 0, 0, 0x00, 0x02, 0, 0]),
        ("changed", vec![0x02, 0, 1, 2, 0x40, 0x01, 0]),
        ("changed-unmap", vec![0x01, 0, 0x81, 1, 20, 0xff, 0x01, 0]),
        (
            "refused",
            [&[0x02][..], &refusal(17), &[0x01], &refusal(28), &[0x81], &refusal(2)].concat(),
        ),
        ("silent", vec![0x02, 0, 4, 0x81]),
        ("bytes", bytes),
    ]
}

/// Messages of a client: what it is, extras, length of a payload that follows, or a change of a sound one.
fn clients() -> Vec<(&'static str, Vec<u8>)> {
    // Extras: a sound payload, with this descriptor beside it.
    let (sound, memory, lane, eventfd, two) = (0x10, 0x12, 0x13, 0x14, 0x16);
    let as_it_is = |kind: u8, extras: u8| vec![kind, extras, 0, 0, 0];
    let mut program = vec![0];
    program.extend(as_it_is(2, memory));
    program.extend(as_it_is(8, eventfd));
    program.extend(as_it_is(10, sound));
    program.extend(as_it_is(9, sound));
    program.extend(as_it_is(13, sound));
    program.extend(as_it_is(3, sound));
    let all = |extras: u8| (0..20).chain([0x80, 0xcc]).flat_map(move |kind| as_it_is(kind, extras));
    let mut on_a_lane = vec![0];
    on_a_lane.extend([as_it_is(2, memory), as_it_is(0x80, lane), as_it_is(10, sound)].concat());
    on_a_lane.extend([as_it_is(0x80, lane), as_it_is(13, sound), as_it_is(9, sound)].concat());
    vec![
        ("program", program),
        ("all", std::iter::once(0).chain(all(sound)).collect()),
        ("all-without-reply", std::iter::once(0).chain(all(sound | 8)).collect()),
        ("all-with-descriptors", std::iter::once(0).chain(all(two)).collect()),
        ("on-a-lane", on_a_lane),
        ("no-version", [&[1][..], &as_it_is(4, sound)].concat()),
        ("version-again", [&[0][..], &as_it_is(1, sound), &as_it_is(4, sound)].concat()),
        ("a-reply", vec![0, 4, 0xff, 0]),
        ("no-message", [&[0, 4, 0xfe, 20][..], &[0x55; 20]].concat()),
        ("map-odd", vec![0, 2, memory, 0, 16, 0x10, 2, memory, 0, 8, 0x01]),
        ("map-twice", [&[0][..], &as_it_is(2, memory), &as_it_is(2, memory)].concat()),
        (
            "empty",
            [[0].as_slice(), &(0..20).flat_map(|kind| [kind, 0, 0]).collect::<Vec<_>>()].concat(),
        ),
    ]
}

/// Bytes of a connection, in pieces. The seeds are the same everywhere, so that on a big-endian machine their
/// lengths are others: too long.
fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let message = |id: u8, payload: &[u8]| {
        let mut bytes = vec![id, 0, 9, 0];
        bytes.extend((16 + payload.len() as u32).to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(payload);
        bytes
    };
    let two = [message(1, b"payload"), message(2, &[])].concat();
    let with = |pieces: &[u8], bytes: &[u8]| [&pieces.repeat(16)[..16], bytes].concat();
    let sized = |size: u32| [&[1, 0, 9, 0][..], &size.to_le_bytes(), &[0; 8]].concat();
    vec![
        ("at-once", with(&[255, 0], &two)),
        ("byte-by-byte", with(&[1, 0], &two)),
        ("with-descriptors", with(&[5, 1, 16, 11], &two)),
        ("too-short", with(&[4, 0], &sized(15))),
        ("too-long", with(&[4, 0], &sized(u32::MAX))),
        ("torn", with(&[7, 3], &message(3, &[7; 100])[..90])),
    ]
}

/// Version messages.
fn versions() -> Vec<(&'static str, Vec<u8>)> {
    let with = |data: &[u8]| [&[0, 0, 1, 0][..], data].concat();
    let all = b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"max_dma_maps\":65535,\
        \"pgsizes\":4096,\"twin_socket\":{\"supported\":true},\"vfio_ccw_lane\":{\"version\":1}}}\0";
    vec![
        ("none", with(b"")),
        ("all", with(all)),
        ("null", with(b"{\"capabilities\":null}")),
        ("negative", with(b"{\"capabilities\":{\"pgsizes\":-1}}\0")),
        ("large", with(b"{\"capabilities\":{\"pgsizes\":18446744073709551615}}\0")),
        ("lane-of-another-kind", with(b"{\"capabilities\":{\"vfio_ccw_lane\":[]}}\0")),
        ("nested", with(&[b'['; 500])),
        ("major", vec![1, 0, 0, 0]),
        ("short", vec![0, 0, 1]),
    ]
}

/// How a server answers: honest replies to the messages before the one that a seed is about.
fn servers() -> Vec<(&'static str, Vec<u8>)> {
    /// Messages before the device is known: version, device, four regions, two interrupts, the SCHIB.
    const GREETING: usize = 9;
    /// Then reset, two interrupts, two windows, a report, and the start.
    const SET_UP: usize = 6;
    let after = |honest: usize, more: &[u8]| [&vec![0; honest][..], more].concat();
    let start = GREETING + SET_UP;
    vec![
        ("honest", after(start, &[0, 1])),
        ("leaves-at-once", vec![5]),
        ("leaves-greeted", after(GREETING, &[5])),
        ("leaves-set-up", after(start, &[5])),
        ("another-version", vec![7, 1, 9]),
        ("refuses-the-device", after(1, &[2, 0, 22])),
        ("another-region", after(4, &[1, 20, 1])),
        ("refuses-memory", after(GREETING + 3, &[2, 0, 12])),
        ("refuses-the-start", after(start, &[2, 0, 16, 0])),
        ("commands", after(2, &[4, 4, 4, 4])),
        ("twice", after(3, &[6])),
        ("signals-too-often", after(start, &[0, 3, 0, 0])),
        ("never-signals", after(start, &[0, 0])),
        ("strange-status", after(start, &[0, 1, 7, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])),
        ("garbage", after(2, &[3, 40, 1, 2, 3, 4])),
    ]
}

/// Steps on a track.
fn tracks() -> Vec<(&'static str, Vec<u8>)> {
    let write = |place: u8, word: u64| [&[0, place][..], &word.to_be_bytes()].concat();
    let push = [6, 1, 0, 0, 0, 0, 0, 0, 0, 2];
    vec![
        ("honest", [1, 7, 1, 8, 2, 3, 4, 1, 9, 5, 2, 3].to_vec()),
        ("laps", [[1, 1, 2, 3].repeat(12), push.repeat(4)].concat()),
        ("own-entries", [&push[..], &push, &[2, 3, 7, 4, 7, 5]].concat()),
        ("full", push.repeat(6)),
        ("taken-too-much", [&push[..], &write(8, u64::MAX), &[7], &push].concat()),
        ("taken-back", [&push[..], &[2, 3, 7], &write(8, 0), &[7], &push].concat()),
        ("state", [&write(0, 1)[..], &push, &[7], &write(0, 7), &[7, 4, 5]].concat()),
        ("comes-and-goes", [&write(16, 1)[..], &[4], &write(16, 0), &[2, 5]].concat()),
    ]
}

fn blocks() -> Vec<(&'static str, Vec<u8>)> {
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let listing =
        |orb: &Orb, memory: &[u8]| [&[1], zerocopy::IntoBytes::as_bytes(orb), memory].concat();
    let read = ccw(0x42, 16, 8192, IDA | CC).to_format_1();
    let end = ccw(command::TIC, 0, 0, CcwFlags::empty()).to_format_1();
    let idaws = [0x1_0000_0000u64.to_be_bytes(), 0x1_0000_5000u64.to_be_bytes()];
    let list = Midaw::new(0x4000, 8).with(MidawFlags::LAST).to_bytes();
    let midaw = ccw(0x06, 16, 8, MIDA).to_format_1();
    vec![
        ("zeros", vec![0; 125]),
        ("ones", with(0, &[0xff; 124])),
        ("a-status", with(0, &[0, 0x80, 0x40, 0x17, 0, 0, 0x10, 8, 0x0e, 0x40, 0, 8])),
        ("listing", listing(&Orb::new(0), &[&read[..], &end, idaws.as_flattened()].concat())),
        ("listing-format-0", listing(&Orb::default(), &ccw(0x58, 0, 1, CC).to_format_0())),
        ("listing-midaws", listing(&orb(0, OrbFlags::MIDAW), &[&midaw[..], &end, &list].concat())),
        ("loop", listing(&Orb::new(0), &end)),
        ("words-ccw1", with(2, b"ccw1\n42601000 0001:2000")),
        ("words-irb", with(2, b"irb\n0x00c04007\n00001008 0c000000")),
        ("words-wrong", with(2, b"schib\n123g")),
        ("ccws", with(3, &[&read[..], &end].concat())),
    ]
}

fn words() -> Vec<(&'static str, &'static str)> {
    vec![
        ("sizes", "--size\n64MiB\n--block\n4k\n--budget\n1G"),
        ("zipf", "--access\nzipf:0.99\n--size\n3T"),
        ("hot", "--access=hot:90/10\n--subchannels\n7"),
        ("sequential", "--access=sequential\n--read-percent=100"),
        (
            "service",
            "--mode=on-demand\n--driver=epoll\n--interrupts=eventfd\n--wait=sleep\n--shards=2",
        ),
        ("metrics", "--metrics\n[::1]:9464"),
        ("off", "--metrics=off"),
        ("numbers", "18446744073709551615\n16777216T\n0x10\n1.5G\n-1\n 64 MiB "),
        ("wrong", "--access\nhot:300/0\n--mode\npin"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Every target with its seeds as they are committed.
    fn replay(target: &str, run: fn(&[u8])) {
        // Where the test runs, which may be another machine than the one that has built it.
        let root = std::env::var_os("CARGO_MANIFEST_DIR");
        let root = root.as_deref().unwrap_or(OsStr::new(env!("CARGO_MANIFEST_DIR")));
        let folder = Path::new(root).join("seeds").join(target);
        let mut committed = BTreeMap::new();
        for entry in fs::read_dir(&folder).expect("a folder for each target") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            committed.insert(name, fs::read(path).expect("readable"));
        }
        for (_, name, bytes) in all().into_iter().filter(|seed| seed.0 == target) {
            assert!(
                committed.get(name) == Some(&bytes),
                "{target}/{name} is not what `cargo run --example write_seeds` writes"
            );
        }
        assert!(committed.len() <= 20 && committed.values().all(|bytes| bytes.len() <= 1024));
        for (name, bytes) in committed {
            println!("{target}/{name}");
            run(&bytes);
        }
        run(&[]);
    }

    macro_rules! replayed {
        ($($target:ident),*) => {$(
            #[test]
            fn $target() {
                replay(stringify!($target), crate::$target::run);
            }
        )*};
    }

    replayed!(
        channel_program,
        unfetched_program,
        fba_disk,
        policy,
        io_region,
        decode,
        options,
        vfio_user,
        vfio_user_server,
        vfio_user_client,
        vfio_user_inbox,
        vfio_user_version,
        lane
    );
}
