//! Bytes as status blocks, CCWs and listings: whatever they are, the text comes and is short.

use std::fmt::{Debug, Write};

use vfio_ccw::architecture::decode::{Listing, MAX_LISTED};
use vfio_ccw::architecture::{
    Ccw, Ccw0, Ccw1, Crw, Idaw1, Idaw2, Irb, IrbHead, Midaw, Orb, Pmcw, Schib, Scsw,
};
use vfio_ccw::backend::{AsyncRegion, CrwRegion, IoRegion, SchibRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command_line;
use crate::input::Input;

/// Lines of a listing for one CCW at most: itself, 64 IDAWs or 256 MIDAWs, and that there are more.
const LINES: usize = 300;

/// One case: what is wanted, then bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.u8() % 4 {
        0 => blocks(input.rest()),
        1 => listing(input),
        2 => words(input.rest()),
        _ => ccws(input),
    }
}

fn blocks(bytes: &[u8]) {
    shown::<Orb>(bytes);
    shown::<Ccw0>(bytes);
    shown::<Ccw1>(bytes);
    shown::<Midaw>(bytes);
    shown::<Idaw1>(bytes);
    shown::<Idaw2>(bytes);
    shown::<Scsw>(bytes);
    shown::<IrbHead>(bytes);
    shown::<Irb>(bytes);
    shown::<Pmcw>(bytes);
    shown::<Schib>(bytes);
    shown::<Crw>(bytes);
    shown::<IoRegion>(bytes);
    shown::<AsyncRegion>(bytes);
    shown::<SchibRegion>(bytes);
    shown::<CrwRegion>(bytes);
    if let Ok((orb, _)) = Orb::read_from_prefix(bytes) {
        let refused = orb.check().err();
        assert!(refused.is_none_or(|error| !error.to_string().is_empty()));
        assert!(orb.key() < 16);
    }
    if let Ok((irb, _)) = IrbHead::read_from_prefix(bytes) {
        assert!(irb.sense().len() <= 32);
    }
}

/// The bytes come back as they were, and the text is there.
fn shown<T>(bytes: &[u8])
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Debug,
{
    if let Ok((block, _)) = T::read_from_prefix(bytes) {
        assert_eq!(block.as_bytes(), &bytes[..size_of::<T>()]);
        assert!((1..2000).contains(&format!("{block:?}").len()));
    }
}

fn listing(mut input: Input<'_>) {
    let orb = Orb::read_from_bytes(&input.array::<12>()).expect("12 bytes");
    let memory = input.rest();
    let text = Listing::new(orb, |address, buffer: &mut [u8]| {
        let bytes = usize::try_from(address)
            .ok()
            .and_then(|from| memory.get(from..from.checked_add(buffer.len())?));
        bytes.map(|bytes| buffer.copy_from_slice(bytes)).is_some()
    })
    .to_string();
    assert!(text.lines().count() <= MAX_LISTED * LINES + 2);
}

/// `vfio-ccw decode`: the first word says what, the rest are digits.
fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(said) = command_line::decode(text.lines()) {
        let (Ok(said) | Err(said)) = said;
        assert!(!said.is_empty());
    }
    // The same bytes as digits: what has the right size for a block is shown as that block.
    let mut digits = String::new();
    for byte in bytes.iter().take(124) {
        write!(digits, "{byte:02x}").expect("a string");
    }
    for (what, size) in [
        ("orb", size_of::<Orb>()),
        ("ccw0", size_of::<Ccw0>()),
        ("ccw1", size_of::<Ccw1>()),
        ("scsw", size_of::<Scsw>()),
        ("pmcw", size_of::<Pmcw>()),
        ("schib", size_of::<Schib>()),
        ("crw", size_of::<Crw>()),
    ] {
        if let Some(digits) = digits.get(..size * 2) {
            let said = command_line::decode([what, digits]).expect("words that can be read");
            assert!(said.is_ok(), "{what}: {said:?}");
        }
    }
}

/// A CCW survives the way into either format and back.
fn ccws(mut input: Input<'_>) {
    while !input.is_empty() {
        let bytes = input.array();
        let one = Ccw::decode(bytes, true);
        assert_eq!(one.to_format_1(), bytes);
        let zero = Ccw::decode(bytes, false);
        assert_eq!(Ccw::decode(zero.to_format_0(), false), zero);
        assert!(zero.address < 1 << 24);
        assert!(!one.is_tic(true) || one.is_tic(false), "every format-1 TIC is one in format 0");
    }
}
